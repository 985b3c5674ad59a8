"""The run's curves on Weights & Biases, online or on disk; the only place that knows how wandb logs.

A dashboard is a convenience and metrics.jsonl is the record: no trouble here may stop a run or hold it up for more
than a few seconds. So all calls are made by one thread of their own, opening and finishing have a time limit, and
whatever goes wrong costs one warning.

Every point carries the four axes of a budget (step, tokens, flops, hours) and no wandb step: wandb demands that
its own step only ever grows, which a run that was killed and resumed from its last checkpoint cannot promise.

A curve holds each step once. A killed run does the steps after its last checkpoint again; those that were shown are not
shown a second time. A process with a network first sends from metrics.jsonl what the processes before it could not; the
files that offline processes leave are sent by `python -m run.tracking.sync outputs/NAME`.
"""

from __future__ import annotations

import contextlib
import importlib
import netrc
import os
import queue
import re
import secrets
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from common.json_io import is_number
from common.network import why_unreachable
from run.history import last_logged_step
from run.tracking.fields import figures, public_config

AXES = ("step", "tokens", "flops", "hours")
DEFAULT_AXIS = "hours"  # what a budget is counted in, and right across resumes, where wandb's own clock is not
CONNECT_TIMEOUT_S = 2.0  # wandb itself retries for 100 s before it says that there is no network
TEARDOWN_LIMIT_S = 2.0
STATS_INTERVAL_S = 30.0
FLUSH_INTERVAL_S = 1.0  # the most that a killed process loses of its offline file; wandb's own default is 15 s
MAX_FAILURES = 3
MAX_WAITING = 10_000  # points that may wait for wandb: some 10 MB
MAX_TAG_LENGTH = 64  # wandb refuses the whole run for a longer one
SEGMENT = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(?P<id>.+)")  # wandb's name for the folder of one process
_KEPT = "the run goes on and metrics.jsonl keeps every point"

Result = TypeVar("Result")


class Dashboard:
    """A dashboard that shows nothing; also the interface of the one that does."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Add one point, unless its step was shown by an earlier process of this run. It should hold the four axes:
        step, tokens, flops and hours."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the figures that stand for the run as a whole, under the names that `figures` gives them."""

    def finish(self) -> None:
        """Close the run. Comes back within a few seconds, whatever happens."""


def open_dashboard(
    mode: str,
    project: str,
    entity: str | None,
    name: str,
    run_id: str,
    group: str | None,
    tags: Sequence[str],
    config: Mapping[str, Any],
    directory: Path,
    timeout_s: float = 8.0,
    warn: Callable[[str], None] = print,
) -> Dashboard:
    """Open the dashboard of a run, or one that shows nothing where that cannot be done.

    mode: "online", "offline" (files under `directory`/wandb, which `python -m run.tracking.sync` sends) or "disabled".
    run_id: the same id again continues the same run. config: plain and nested; it is logged flattened, with the dotted names
    of the command line, without the entries whose name says that they are secret. timeout_s: the limit for opening and for
    finishing. warn: is given one line for each kind of trouble, always in the thread that calls this module.
    """
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"dashboard mode {mode!r}: must be online, offline or disabled")
    if mode == "disabled":
        return Dashboard()
    options = {
        "project": project,
        "entity": entity,
        "name": name,
        "id": run_id,
        "group": group,
        "tags": [tag[:MAX_TAG_LENGTH] for tag in tags],
        "config": public_config(config),
        "dir": str(directory.absolute()),
    }
    return _WandbDashboard(mode, options, timeout_s, warn)


def segments(folder: Path) -> list[str]:
    """The wandb ids under which processes of the run in `folder` have logged, in their order."""
    found = sorted(path.name.removeprefix("offline-") for path in (folder / "wandb").glob("*run-*"))
    return [match["id"] for name in found if (match := SEGMENT.fullmatch(name))]


def wandb_id(folder: Path) -> str:
    """The id of this folder's run on wandb. Not the folder's name alone: a run that begins anew under the same name
    (fresh=true, or the folder was removed) is another run, and wandb would append it to the curve of the first."""
    earlier = segments(folder)
    return earlier[-1] if earlier else f"{folder.absolute().name}-{secrets.token_hex(2)}"


class _WandbDashboard(Dashboard):
    """Hands every call to one thread, which alone talks to wandb."""

    def __init__(self, mode: str, options: dict[str, Any], timeout_s: float, warn: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._warn = warn
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue(MAX_WAITING)
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failures = 0
        self._closed = False
        self._run: Any = None
        self._shown = -1.0  # the last step that an earlier process showed
        self._thread: threading.Thread | None = None
        self._open(mode, options)

    def log(self, metrics: Mapping[str, Any]) -> None:
        if metrics.get("step", self._shown + 1) <= self._shown:
            return
        point = figures(metrics)
        self._submit(lambda: self._run.log(point))

    def summary(self, values: Mapping[str, Any]) -> None:
        flat = figures(values)
        self._submit(lambda: self._run.summary.update(flat))

    def finish(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(queue.Full):
                self._calls.put_nowait(None)
            thread.join(self._timeout_s)
            if thread.is_alive():
                self._warn(f"wandb did not finish within {self._timeout_s:g} s and was left behind; {_KEPT}")
            self._report()
        if not self._closed:
            self._closed = True
            tear_down()

    def _open(self, mode: str, options: dict[str, Any]) -> None:
        try:
            opened = within(self._timeout_s, lambda: _open_run(mode, options, self._timeout_s), "opening")
            self._run, self._shown, notice = opened
        except Exception as error:
            self._warn(f"no dashboard for this run: {_one_line(error)}; {_KEPT}")
            return
        if notice:
            self._warn(notice)
        self._thread = threading.Thread(target=self._work, name="dashboard", daemon=True)
        self._thread.start()

    def _submit(self, call: Callable[[], object]) -> None:
        if self._thread is None:
            return
        self._report()
        if self._failures >= MAX_FAILURES:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._failures = MAX_FAILURES
            self._warn(f"wandb does not take any more points: the dashboard ends here; {_KEPT}")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._failures < MAX_FAILURES:
                self._try(call)
        with contextlib.suppress(Exception):
            self._run.finish()

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._failures += 1
            if self._failures == MAX_FAILURES:
                self._notices.put(f"the dashboard ends here, wandb failed {MAX_FAILURES} times: {_one_line(error)}")

    def _report(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._warn(f"{self._notices.get_nowait()}; {_KEPT}")


def within(limit_s: float, call: Callable[[], Result], what: str) -> Result:
    """The result of call() made in a thread; raises what it raised, or TimeoutError after limit_s seconds."""
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # SystemExit too: no library may end the run
            errors.append(error)

    thread = threading.Thread(target=work, name=f"dashboard-{what}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise RuntimeError(_one_line(errors[0])) from errors[0]
    if not outcome:
        raise TimeoutError(f"wandb: {what} took more than {limit_s:g} s")
    return outcome[0]


def _open_run(mode: str, options: dict[str, Any], timeout_s: float) -> tuple[Any, float, str | None]:
    """The wandb run, the last step that it already shows, and a notice for the user. options: arguments of wandb.init."""
    directory = Path(options["dir"])
    before = last_logged_step(directory) if segments(directory) else -1.0
    wandb = load_wandb(directory)
    if mode == "offline":
        return _start_run(wandb, "offline", options, timeout_s), before, None
    reason = why_not_online(wandb)
    if reason is None:
        try:
            run = _start_run(wandb, "online", options, timeout_s)
            shown = _last_shown_step(run)
        except Exception as error:
            reason = _one_line(error)
        else:
            _mark_as_synced(directory)
            return run, shown, None
    run = _start_run(wandb, "offline", options, timeout_s)
    later = f"python -m run.tracking.sync {shlex.quote(str(directory))}"
    return run, before, f"wandb is not online ({reason}): logging to disk; to upload later: {later}"


def synced_marker(file: Path) -> Path:
    """The empty file with which `wandb sync` marks a .wandb file that it has sent."""
    return file.with_suffix(".wandb.synced")


def _mark_as_synced(directory: Path) -> None:
    """Keep `wandb sync` from sending the files of earlier offline processes: it appends to the curve, and an online process
    sends the points that the server lacks from metrics.jsonl."""
    with contextlib.suppress(OSError):
        for file in (directory / "wandb").glob("offline-run-*/*.wandb"):
            synced_marker(file).touch()


def _last_shown_step(run: Any) -> float:
    """The last step that wandb's server has of a run that was opened online; -1 where it has none."""
    step = run.summary.get("step")
    return float(step) if is_number(step) else -1.0


def load_wandb(directory: Path) -> ModuleType:
    """Import wandb so that it keeps its files in `directory` and prints nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        WANDB_DIR=str(directory),
        # wandb's defaults lie in the home folder, where they have filled quotas.
        WANDB_CACHE_DIR=str(directory / "wandb" / "cache"),
        WANDB_DATA_DIR=str(directory / "wandb" / "data"),
        WANDB_ERROR_REPORTING="false",
        WANDB_SILENT="true",
    )
    return importlib.import_module("wandb")


def _start_run(wandb: ModuleType, mode: str, options: dict[str, Any], timeout_s: float) -> Any:
    """wandb.init with stint's settings."""
    wanted = {
        "console": "off",
        "silent": True,
        "quiet": True,
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "symlink": False,
        "init_timeout": timeout_s,
        "finish_timeout": 0.75 * timeout_s,  # wandb gives up by itself before it is left behind
        "finish_timeout_raises": False,
        "x_stats_sampling_interval": STATS_INTERVAL_S,
        "x_transaction_log_flush_interval": FLUSH_INTERVAL_S,
    }
    known = wandb.Settings.model_fields  # they differ between releases, and wandb refuses one that it does not know
    run = wandb.init(
        **options,
        mode=mode,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(**{key: value for key, value in wanted.items() if key in known}),
    )
    for axis in AXES:
        run.define_metric(axis)
    run.define_metric("*", step_metric=DEFAULT_AXIS)
    return run


def no_account(wandb: ModuleType) -> str | None:
    """What is missing to log in, and how to fix it; None where there is a key. To be asked before wandb.init, which would
    ask the keyboard."""
    settings = wandb.setup().settings
    host = urlsplit(settings.base_url).hostname or ""
    has_key = key_at_hand(host) or getattr(settings, "api_key", None)
    return None if has_key else f"no API key for {host}; `wandb login` sets one"


def why_not_online(wandb: ModuleType) -> str | None:
    """Why wandb's server cannot be used, asked within a few seconds; None where it can."""
    return no_account(wandb) or why_unreachable(wandb.setup().settings.base_url, CONNECT_TIMEOUT_S)


def netrc_path() -> Path:
    """Where `wandb login` keeps its key."""
    return Path(os.environ.get("NETRC") or Path.home() / ("_netrc" if os.name == "nt" else ".netrc"))


def key_at_hand(host: str) -> bool:
    """Whether the environment or the user's netrc file has a key for a wandb host; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        entries = netrc.netrc(netrc_path())
    except (OSError, netrc.NetrcParseError):
        return False
    # Keys of api.wandb.ai stay valid under the newer default host.
    return any(entries.authenticators(name) for name in (host, "api.wandb.ai"))


def tear_down() -> None:
    """Stop wandb's helper process now, with a limit: at exit wandb would wait for it without one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and hasattr(wandb, "teardown"):
        with contextlib.suppress(Exception):
            within(TEARDOWN_LIMIT_S, wandb.teardown, "teardown")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
