"""Data sets of the Hugging Face Hub, streamed once into shards. The only module that imports `datasets`.

Repositories on the Hub are changed and removed (Cerebras/modelzoo#88), so one commit is read, which the origin records, and
SlimPajama has fallbacks. A part is one data file of the repository. An interrupted preparation continues within that file
and needs no shuffle buffer or iterator state (huggingface/datasets#8308).
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import MachineError, UserError
from common.network import why_unreachable
from common.typed import closest
from data.documents import BadRecord, Document, Reading, record_of
from data.files.find_files import allowed_folders, lies_within
from data.files.readers import LOOK_AHEAD
from data.sources.base import DataSpec, Overview, Part
from data.splits import VALIDATION_NAMES

# The repository, revision, fallback and limit of the preset slimpajama (conf/data/slimpajama.yaml). They belong together.
SLIMPAJAMA_6B = "DKYoon/SlimPajama-6B"
SLIMPAJAMA_627B, SLIMPAJAMA_627B_COPY = "cerebras/SlimPajama-627B", "gmongaras/SlimPajama-627B_Reupload"
DEFAULT = (SLIMPAJAMA_6B, "b5f90f419b7489cdba26fdbc8c022fcb5562f968")
PRESET_MAX_BYTES = 25_000_000_000
SLIMPAJAMA = (SLIMPAJAMA_6B, SLIMPAJAMA_627B, SLIMPAJAMA_627B_COPY)
CONNECT_TIMEOUT_S = 3
FORMATS = ("csv", "json", "parquet", "text")
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
MOST_LISTED, LONGEST_REASON = 12, 250  # names and characters in an error message


OTHER_TEXT = "choose another with data.repo=, or read files with data=text data.path="


class _NotAvailable(Exception):
    """A repository or revision that is missing or may not be read. Its text is the reason."""


@dataclass(frozen=True)
class _Found:
    """A repository as it is read: its name on the Hub or its folder, and its commit (None for a folder)."""

    repo: str
    revision: str | None


class HubSource:
    """A data set on the Hub, or a local copy of one, with a text column; `meta.redpajama_set_name` is the source label."""

    in_bytes = True

    def __init__(self, spec: DataSpec) -> None:
        assert spec.repo or spec.source == "slimpajama"
        self._spec = spec
        self._splits: dict[str, Any] = {}
        self._files: dict[str, list[str]] = {}
        self._found = _Found("", None)
        self._started_at = 0
        first = (_repository(spec.repo), spec.revision) if spec.repo else (DEFAULT[0], spec.revision or DEFAULT[1])
        original = spec.source == "slimpajama" and first[0] == SLIMPAJAMA_627B
        fallbacks = spec.fallbacks or ((SLIMPAJAMA_627B_COPY,) if original else ())
        self._candidates = [first, *(_parsed(each) for each in fallbacks)]
        self.identity: dict[str, Any] = {"candidates": [list(each) for each in self._candidates]}
        if spec.config is not None:
            self.identity["config"] = spec.config
        if spec.split != "train":
            self.identity["split"] = spec.split
        has_validation = first[0] in SLIMPAJAMA
        if Path(first[0]).is_dir():
            files = (path for path in sorted(Path(first[0]).rglob("*")) if path.is_file())
            stats = [(path.relative_to(first[0]).as_posix(), path.stat()) for path in files]
            self.identity["files"] = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
            has_validation = any("validation" in name for name, _ in stats)
        if not has_validation:
            # Earlier versions knew the split "validation" alone, so they have prepared other splits from these files.
            self.identity["validation"] = list(VALIDATION_NAMES)

    @property
    def consumed(self) -> int:
        if "huggingface_hub" not in sys.modules:
            return 0
        from data.sources.hub_files import Downloaded

        return Downloaded.total - self._started_at

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        """Open the first available candidate, or the one that an interrupted preparation has used."""
        tried = [(previous["repo"], previous["revision"])] if previous else self._candidates
        gone: list[str] = []
        for repo, revision in tried:
            try:
                found = _find(repo, revision)
                self._load(found)
            except _NotAvailable as reason:
                gone.append(f"{_name(repo, revision)} is not available ({reason})")
                continue
            self._found = found
            for each in gone:
                log(f"warning: {each}; reading {_name(repo, revision)} instead")
            return previous or {"repo": found.repo, "revision": found.revision, "gone": gone}
        raise UserError(f"{'; '.join(gone)}; {OTHER_TEXT}")

    def _load(self, found: _Found) -> None:
        """Open the data set. Raises _NotAvailable if it may not be read, and UserError for one that cannot be used."""
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetNotFoundError

        from data.sources import hub_files

        hub_files.register()
        # The message of the first is part of the exception; in the log it would be a second one. The second warns of a README
        # without metadata, which is not an error.
        for logger, level in (("datasets.packaged_modules", logging.CRITICAL), ("huggingface_hub", logging.ERROR)):
            logging.getLogger(logger).setLevel(level)
        try:
            builder = load_dataset_builder(found.repo, name=self._spec.config, revision=found.revision)
            _refuse_foreign_files(builder, found.repo)
            self._splits = dict(builder.as_streaming_dataset())
            self._files = {split: list(builder.config.data_files[split]) for split in self._splits}
        except UserError:
            raise
        except DatasetNotFoundError as error:
            raise _NotAvailable(_access_hint(_reason(error))) from error
        except Exception as error:  # of datasets, or of any library that it reads the repository with
            self._refuse_unknown_config(found, error)
            raise _explained(found.repo, error) from error

    def _refuse_unknown_config(self, found: _Found, error: Exception) -> None:
        """Raise UserError with the configurations to choose from if `error` says that none or an unknown one is chosen."""
        if not isinstance(error, ValueError):
            return
        from datasets import get_dataset_config_names

        try:
            names = get_dataset_config_names(found.repo, revision=found.revision)
        except Exception:  # the repository is broken in another way, which `error` describes
            return
        chosen = self._spec.config
        if chosen is None and len(names) > 1 and "config" in str(error).lower():
            raise UserError(
                f"data.repo={found.repo} has {len(names)} configurations; choose one with data.config=: {_listed(names)}"
            ) from error
        if chosen is not None and chosen not in names:
            raise UserError(
                f"data.config={chosen} is not a configuration of {found.repo}; data.config= takes {_listed(names)}"
                f"{closest(chosen, names)}"
            ) from error

    def parts(self) -> list[Part]:
        chosen = self._spec.split
        if chosen not in self._splits:
            raise UserError(
                f"data.split={chosen} is not a split of {self._found.repo}; choose the split to train on with data.split=: "
                f"{_listed(list(self._splits))}{closest(chosen, self._splits)}"
            )
        held_out = self._held_out()
        known = {chosen: None} if held_out is None else {held_out: "val", chosen: "train"}
        return [
            Part(f"{name}/{index}", _size_of(file), split)
            for name, split in known.items()
            for index, file in zip(range(self._splits[name].num_shards), self._files[name], strict=True)
        ]

    def _held_out(self) -> str | None:
        """Return the name of the validation split, or None."""
        return next((name for name in VALIDATION_NAMES if name in self._splits and name != self._spec.split), None)

    def overview(self) -> Overview:
        held_out = self._held_out()
        read = [name for name in (held_out, self._spec.split) if name in self._splits]
        others = tuple(f"{name}/" for name in self._splits if name not in read)
        files = sum(len(self._files[name]) for name in read)
        skipped = sum(len(self._files[name[:-1]]) for name in others)
        return Overview(f"{held_out}/" if held_out else "", files, others, skipped)

    def documents(self, part: Part) -> Iterator[Document | None]:
        name, _, index = part.name.rpartition("/")
        self._started_at += self.consumed
        stream = self._splits[name]
        shard = self._with_text_only(stream.shard(num_shards=stream.num_shards, index=int(index)))
        reading = Reading(self._spec.text_key, self._spec.bad_documents)
        label = self._found.repo.rstrip("/").rsplit("/", 1)[-1]
        place = f"{self._found.repo}: {self._own_name(self._files[name][int(index)])}"
        rows = _rows(shard, place)
        for number, row in enumerate(rows, start=1):
            try:
                record = record_of(row, f"{place}: row {number}", reading)
            except BadRecord as error:
                if number > 1 or _some_good(rows, reading):
                    raise
                raise UserError(f"{error.problem}; no record at the start of the file has a text") from None
            yield Document(record.text, record.source or label, part.split) if record else None

    def _own_name(self, file: str) -> str:
        """Return the name of a data file within the repository."""
        return file.removeprefix(f"hf://datasets/{self._found.repo}@{self._found.revision}/")

    def _with_text_only(self, shard: Any) -> Any:
        """Leave out all columns but the text and the label.

        Other columns may hold images or sound, which `datasets` would decode, from any path or address that they name.
        """
        if shard.features is None:  # not known before the file is read, which is plain JSON or CSV
            return shard
        from datasets.features.features import require_decoding

        top = self._spec.text_key.split(".")[0]
        kept = [
            name
            for name in dict.fromkeys((top, "meta"))
            if name in shard.features
            and (type(shard.features[name]).__name__ == "Json" or not require_decoding(shard.features[name]))
        ]
        if top not in kept:
            raise UserError(
                f"data.repo={self._found.repo} has no text in column {top!r}; set data.text_key to one of "
                f"{_listed(list(shard.features))}"
            )
        return shard.select_columns(kept)


def _rows(shard: Any, place: str) -> Iterator[Any]:
    """Yield the rows of a data file. Raises UserError or MachineError for any exception of the libraries that read it."""
    rows = iter(shard)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _explained(place, error, transient=(FileNotFoundError,)) from error
        yield row


def _some_good(rows: Iterator[Any], reading: Reading) -> bool:
    """Return whether one of the next rows is good, that is, whether skipping bad ones would leave any."""
    skipping = replace(reading, bad_documents="skip")
    return any(record_of(row, "", skipping) for row in itertools.islice(rows, LOOK_AHEAD))


def without_foreign_preset(spec: DataSpec) -> DataSpec:
    """Return `spec` without those values of the preset slimpajama that do not hold for the repository it names.

    Its revision is a commit of its own repository, its fallback has the text of SlimPajama, and its limit is for that
    fallback. With another repository, they would make another corpus of a name with a typing error. A local copy is read
    as it is, and other values were set by the user.
    """
    if spec.source != "slimpajama" or not spec.repo or Path(spec.repo).is_dir():
        return spec
    repo = _repository(spec.repo)
    other = repo != DEFAULT[0]
    chosen = other or spec.revision not in (None, DEFAULT[1]) or spec.config is not None or spec.split != "train"
    preset_fallbacks = spec.fallbacks == (SLIMPAJAMA_627B_COPY,)
    return replace(
        spec,
        revision=None if other and spec.revision == DEFAULT[1] else spec.revision,
        fallbacks=() if chosen and preset_fallbacks else spec.fallbacks,
        max_bytes=None if repo not in SLIMPAJAMA and spec.max_bytes == PRESET_MAX_BYTES else spec.max_bytes,
    )


def _repository(name: str) -> str:
    """Return the folder that `name` is, or OWNER/NAME on the Hub; `name` may be the address of its page."""
    if Path(name).is_dir():
        return name
    address = re.fullmatch(r"(?:https?://[^/]+/|hf://)(.*?)", name.partition("?")[0])
    path = (address[1] if address else name).rstrip("/")
    if address and not path.startswith("datasets/"):
        raise UserError(
            f"data.repo={name} is not the address of a data set; give OWNER/NAME, or https://huggingface.co/datasets/OWNER/NAME"
        )
    path = re.sub(r"^(datasets/[^/]+/[^/]+)/(tree|blob)/main$", r"\1", path)
    if path.count("/") > 1 or address:
        path = path.removeprefix("datasets/")
    if NAME.fullmatch(path) and not path.startswith("."):
        return path
    if path.count("/") > 1 and all(path.split("/")) and path[0] not in "./~":
        owner_and_name = "/".join(path.split("/")[:2])
        raise UserError(
            f"data.repo={name} is neither a folder nor OWNER/NAME; set data.repo={owner_and_name}, and choose a part of it"
            " with data.config= and data.split="
        )
    raise UserError(f"data.repo={name} is neither a folder nor OWNER/NAME of a data set on the Hub; give one of them")


def _find(repo: str, revision: str | None) -> _Found:
    """Return the repository and the commit to read. Raises _NotAvailable, MachineError or UserError otherwise."""
    if Path(repo).is_dir():
        return _Found(repo, revision)
    if _offline():
        raise UserError(
            f"HF_HUB_OFFLINE is set, so {_name(repo, revision)} cannot be downloaded; unset it, or"
            " read files with data=text data.path="
        )
    _check_network(repo)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(repo, revision=revision, timeout=100)
    except RevisionNotFoundError as error:
        raise _NotAvailable(f"it has no revision {revision}; see data.revision=") from error
    except RepositoryNotFoundError as error:
        raise _NotAvailable(_why_not_found(repo)) from error
    except HfHubHTTPError as error:
        if _refused(error):
            status = f"HTTP {_status_of(error)}"
            raise _NotAvailable(_access_hint(status) if _status_of(error) in (401, 403) else status) from error
        raise _explained(repo, error) from error
    except HFValidationError as error:
        raise UserError(f"data.repo={repo} is not a name on the Hub: {_reason(error)}") from error
    except Exception as error:  # of the HTTP library, which depends on the version
        raise _explained(repo, error) from error
    return _Found(info.id, info.sha)


def _why_not_found(repo: str) -> str:
    from huggingface_hub import HfApi

    try:
        model = HfApi().repo_exists(repo, repo_type="model")
    except Exception:  # it says nothing about the data set
        model = False
    if model:
        return "it is a model, not a data set"
    return _access_hint("the Hub has no data set of this name, or it is private")


def _access_hint(reason: str) -> str:
    return f"{reason.rstrip('.')}; for a private or gated one, log in with `hf auth login` or set HF_TOKEN"


def _refuse_foreign_files(builder: Any, repo: str) -> None:
    """Raise UserError unless the data files are the repository's own and in a plain text format.

    A repository's README names its data files. Without this check it could name any file of this machine or of the web,
    and any of the decoders of `datasets`.
    """
    if builder.name not in FORMATS:
        raise UserError(f"data.repo={repo} holds {builder.name} data; allowed: {', '.join(FORMATS)}")
    folders = allowed_folders(Path(repo)) if Path(repo).is_dir() else None
    for file in itertools.chain.from_iterable((builder.config.data_files or {}).values()):
        own = (
            lies_within(Path(file), folders)
            if folders
            else file.startswith(f"hf://datasets/{repo}@") and "/../" not in file
        )
        if not own:
            raise UserError(
                f"data.repo={repo}: its README names {file}, which is outside the repository; choose another data.repo="
            )


def _size_of(file: str) -> int:
    """Return the size of a data file in bytes. For hf:// it is in the listing by which `datasets` has found the file."""
    if not file.startswith("hf://"):
        return Path(file).stat().st_size
    import datasets.config
    import fsspec

    files = fsspec.filesystem("hf", endpoint=datasets.config.HF_ENDPOINT, token=None)
    return int(files.info(file)["size"])


def _parsed(name: str) -> tuple[str, str | None]:
    repo, _, revision = name.partition("@")
    return repo, revision or None


def _name(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(str(name)[:60] for name in names[:MOST_LISTED])
    return shown if len(names) <= MOST_LISTED else f"{shown}, ... ({len(names)} in all)"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


def _offline() -> bool:
    return any(
        os.environ.get(key, "").upper() in ("1", "TRUE", "YES", "ON")
        for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def _check_network(repo: str) -> None:
    """Raise UserError without a network. `datasets` would retry for 23 s before it reports that."""
    if reason := why_unreachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), CONNECT_TIMEOUT_S):
        raise UserError(f"no network: {reason}, so {repo} cannot be downloaded; read files with data=text data.path=")


def _explained(name: str, error: Exception, transient: tuple[type[Exception], ...] = ()) -> UserError | MachineError:
    """Return the error to report for an exception of the libraries that read the repository or data file `name`.

    The exceptions of these libraries (datasets, pyarrow, pandas, yaml, fsspec) for a file or README that they cannot use
    have no common base. An exception that comes from the network, or is one of `transient`, is a failure of the machine.
    """
    if isinstance(error, MemoryError):
        return MachineError(f"not enough memory to read {name}; close other programs and run the same command again")
    chain = list(_causes(error))
    for each in chain:
        if (status := _status_of(each)) in (401, 403):
            return UserError(f"data.repo={name}: {_access_hint(f'access denied (HTTP {status})')}")
    network = (*_network_errors(), *transient)
    cause = next((each for each in chain if isinstance(each, network) and not _refused(each)), None)
    if cause is not None:
        reason = _reason(cause)
        return MachineError(
            f"the network failed while reading {name} ({reason}); run the same command again to continue"
        )
    kind = "" if type(error) in (ValueError, RuntimeError) else f"{type(error).__name__}: "
    return UserError(f"data.repo={name}: datasets cannot read it ({kind}{_reason(error)}); choose another data.repo=")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that led to it; a library may have hidden them (`from None`)."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error of huggingface_hub, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _refused(error: BaseException) -> bool:
    """Return whether the server has refused the request, which it would do again (not 408 or 429, nor its own failure)."""
    status = _status_of(error)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that are raised if a connection breaks or the server fails.

    The HTTP library depends on the version of huggingface_hub; a library that has raised has been imported.
    """
    raised = [
        ("httpx", "HTTPError"),
        ("httpx2", "HTTPError"),
        ("aiohttp", "ClientError"),
        ("requests", "RequestException"),
    ]
    loaded = [getattr(sys.modules[module], name) for module, name in raised if module in sys.modules]
    return (ConnectionError, TimeoutError, *loaded)
