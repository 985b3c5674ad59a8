"""Logs a run to Weights & Biases, online or to disk.

metrics.jsonl is the record of a run and wandb only a convenience, so no failure here may stop a run or delay it by more than
a few seconds. All calls to wandb run in one separate thread, opening and finishing have a time limit, and each kind of
failure gives one warning.

Every point has the four axes of a budget (step, tokens, flops, hours) and no wandb step. wandb requires that its own step
never decreases, but a run that is resumed from its last checkpoint repeats steps.

A curve holds each step once: steps that are repeated after a resume are not logged a second time. A process with a network
first sends from metrics.jsonl the points that earlier processes could not send. The files of offline processes are sent by
`python -m run.tracking.sync outputs/NAME`.
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

from common.json_io import number
from common.network import why_unreachable
from run.history import last_logged_step
from run.tracking.fields import figures, public_config

AXES = ("step", "tokens", "flops", "hours")
DEFAULT_AXIS = "hours"  # of the budget, which stay correct across resumes; wandb's own clock does not
CONNECT_TIMEOUT_S = 2.0  # wandb itself retries for 100 s before it reports that there is no network
TEARDOWN_LIMIT_S = 2.0
STATS_INTERVAL_S = 30.0
FLUSH_INTERVAL_S = 1.0  # a killed process loses at most this much of its offline file; wandb's default is 15 s
MAX_FAILURES = 3
MAX_WAITING = 10_000  # queued points, about 10 MB
MAX_TAG_LENGTH = 64  # wandb refuses a run with a longer tag
SEGMENT = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(?P<id>.+)")  # wandb's name for the folder of one process
_KEPT = "the run continues and metrics.jsonl keeps every point"

Result = TypeVar("Result")


class Dashboard:
    """A dashboard that logs nothing, and the interface of the one for wandb."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log one point, unless an earlier process of this run has logged its step. It should have the four axes: step,
        tokens, flops and hours."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the summary figures of the run, with names made by `figures`."""

    def finish(self) -> None:
        """Close the run. Returns within a few seconds, even after a failure."""


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
    """Open the dashboard of a run, or one that logs nothing if wandb cannot be used.

    Args:
        mode: "online", "offline" (files under `directory`/wandb, sent later by `python -m run.tracking.sync`) or "disabled".
        run_id: The id on wandb; the same id continues the same run.
        config: The nested config. It is logged flattened, with the names of the command line and without secrets.
        timeout_s: Time limit in seconds for opening, and for finishing.
        warn: Called with one line per kind of failure, always in the caller's thread.

    Raises ValueError for an unknown mode.
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
    """The wandb ids that the processes of the run in `folder` have used, oldest first."""
    found = sorted(path.name.removeprefix("offline-") for path in (folder / "wandb").glob("*run-*"))
    return [match["id"] for name in found if (match := SEGMENT.fullmatch(name))]


def wandb_id(folder: Path) -> str:
    """The id on wandb of the run in `folder`: the folder's name and a random suffix.

    The name alone would not do: a run that starts again under the same name (fresh=true, or the folder was deleted) is another
    run, and wandb would append it to the curve of the first.
    """
    earlier = segments(folder)
    return earlier[-1] if earlier else f"{folder.absolute().name}-{secrets.token_hex(2)}"


class _WandbDashboard(Dashboard):
    """Logs to wandb through one thread that makes all calls to it."""

    def __init__(self, mode: str, options: dict[str, Any], timeout_s: float, warn: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._warn = warn
        self._calls: queue.Queue[Callable[[], object] | None] = queue.Queue(MAX_WAITING)
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failures = 0
        self._closed = False
        self._replaced: list[Path] = []
        self._run: Any = None
        self._shown = -1.0  # the last step that an earlier process logged
        self._thread: threading.Thread | None = None
        try:
            opened = within(timeout_s, lambda: _open_run(mode, options, timeout_s), "opening")
        except Exception as error:
            warn(f"no wandb for this run: {_one_line(error)}; {_KEPT}")
            return
        self._run, self._shown, notice = opened
        if mode == "online" and notice is None:
            # An online process sends missing points from metrics.jsonl; `wandb sync` would append those of the files of
            # earlier offline processes again. They are marked as sent once this process has sent all its points.
            self._replaced = [*(Path(options["dir"]) / "wandb").glob("offline-run-*/*.wandb")]
        if notice:
            warn(notice)
        self._thread = threading.Thread(target=self._work, name="dashboard", daemon=True)
        self._thread.start()

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
                self._warn(f"wandb did not finish within {self._timeout_s:g} s and was abandoned; {_KEPT}")
            self._report()
        if not self._closed:
            self._closed = True
            tear_down()

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
            self._warn(f"wandb accepts no more points, logging to it stops; {_KEPT}")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._failures >= MAX_FAILURES:
                continue
            try:
                call()
            except Exception as error:
                self._failures += 1
                if self._failures == MAX_FAILURES:
                    self._notices.put(f"wandb failed {MAX_FAILURES} times, logging to it stops: {_one_line(error)}")
        with contextlib.suppress(Exception):
            self._run.finish()
            if self._failures < MAX_FAILURES:
                for file in self._replaced:
                    synced_marker(file).touch()

    def _report(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._warn(f"{self._notices.get_nowait()}; {_KEPT}")


def within(limit_s: float, call: Callable[[], Result], what: str) -> Result:
    """Run call() in a thread and return its result.

    Raises RuntimeError if it raised, and TimeoutError after limit_s seconds; `what` names the call in the message.
    """
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # even SystemExit: no library may end the run
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
    """The wandb run, the last step that it already has, and a notice for the user. `options`: arguments of wandb.init."""
    directory = Path(options["dir"])
    before = last_logged_step(directory) if segments(directory) else -1.0
    wandb = load_wandb(directory)
    if mode == "offline":
        return _start_run(wandb, "offline", options, timeout_s), before, None
    reason = why_not_online(wandb)
    if reason is None:
        try:
            run = _start_run(wandb, "online", options, timeout_s)
            last_on_server = number(run.summary.get("step"), -1.0)
        except Exception as error:
            reason = _one_line(error)
        else:
            return run, last_on_server, None
    run = _start_run(wandb, "offline", options, timeout_s)
    later = f"python -m run.tracking.sync {shlex.quote(str(directory))}"
    return run, before, f"wandb is not online ({reason}): logging to disk; to upload later: {later}"


def synced_marker(file: Path) -> Path:
    """The empty file that `wandb sync` creates to mark a .wandb file as sent."""
    return file.with_suffix(".wandb.synced")


def load_wandb(directory: Path) -> ModuleType:
    """Import wandb, configured to keep its files in `directory` and to print nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        WANDB_DIR=str(directory),
        # wandb's default folders are in the home folder and can exceed its quota.
        WANDB_CACHE_DIR=str(directory / "wandb" / "cache"),
        WANDB_DATA_DIR=str(directory / "wandb" / "data"),
        WANDB_ERROR_REPORTING="false",
        WANDB_SILENT="true",
    )
    return importlib.import_module("wandb")


def _start_run(wandb: ModuleType, mode: str, options: dict[str, Any], timeout_s: float) -> Any:
    """Call wandb.init with stint's settings."""
    wanted = {
        "console": "off",
        "silent": True,
        "quiet": True,
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "symlink": False,
        "init_timeout": timeout_s,
        "finish_timeout": 0.75 * timeout_s,  # wandb gives up before our own limit
        "finish_timeout_raises": False,
        "x_stats_sampling_interval": STATS_INTERVAL_S,
        "x_transaction_log_flush_interval": FLUSH_INTERVAL_S,
    }
    known = wandb.Settings.model_fields  # settings differ between releases, and wandb refuses unknown ones
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
    """The error message if there is no API key, else None. Check this before wandb.init, which would prompt for one."""
    settings = wandb.setup().settings
    host = urlsplit(settings.base_url).hostname or ""
    has_key = key_at_hand(host) or getattr(settings, "api_key", None)
    return None if has_key else f"no API key for {host}; `wandb login` sets one"


def why_not_online(wandb: ModuleType) -> str | None:
    """Why wandb's server cannot be used, or None. Takes at most a few seconds."""
    return no_account(wandb) or why_unreachable(wandb.setup().settings.base_url, CONNECT_TIMEOUT_S)


def netrc_path() -> Path:
    """The netrc file, where `wandb login` stores the API key."""
    return Path(os.environ.get("NETRC") or Path.home() / ("_netrc" if os.name == "nt" else ".netrc"))


def key_at_hand(host: str) -> bool:
    """Whether the environment or the user's netrc file has an API key for a wandb host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        entries = netrc.netrc(netrc_path())
    except (OSError, netrc.NetrcParseError):
        return False
    # Keys of api.wandb.ai stay valid under the newer default host.
    return any(entries.authenticators(name) for name in (host, "api.wandb.ai"))


def tear_down() -> None:
    """Stop wandb's service process, with a time limit. At exit, wandb would wait for it without one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and hasattr(wandb, "teardown"):
        with contextlib.suppress(Exception):
            within(TEARDOWN_LIMIT_S, wandb.teardown, "teardown")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
