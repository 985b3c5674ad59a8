"""SlimPajama from the Hugging Face Hub, streamed once into shards. The only module that imports `datasets`.

SlimPajama repositories on the Hub have been removed before (Cerebras/modelzoo#88), so the revision is pinned, fallbacks are
listed, and the repository that was read is recorded. A part is one data file of the repository. An interrupted preparation
continues within that file and needs no shuffle buffer or iterator state (huggingface/datasets#8308).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import MachineError, UserError
from common.network import why_unreachable
from data.documents import Document, Reading, record_of
from data.find_files import allowed_folders, lies_within
from data.sources.base import DataSpec, Overview, Part

DEFAULT = ("DKYoon/SlimPajama-6B", "b5f90f419b7489cdba26fdbc8c022fcb5562f968")
ORIGINAL = "cerebras/SlimPajama-627B"
ORIGINAL_FALLBACK = "gmongaras/SlimPajama-627B_Reupload"
CONNECT_TIMEOUT_S = 3
# The Hub does not report how much text a data file holds; those of SlimPajama-6B hold about this much.
NOMINAL_PART_BYTES = 500_000_000
SPLITS = {"validation": "val", "train": "train"}
FORMATS = ("csv", "json", "parquet", "text")


class HubSource:
    """A dataset on the Hub, or a local copy of one, with a text column; `meta.redpajama_set_name` is the source label."""

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec
        self._splits: dict[str, Any] = {}
        self._label = ""
        self.consumed = 0
        first = (spec.repo, spec.revision) if spec.repo else (DEFAULT[0], spec.revision or DEFAULT[1])
        fallbacks = spec.fallbacks or ((ORIGINAL_FALLBACK,) if first[0] == ORIGINAL else ())
        self._candidates = [first, *(_parsed(each) for each in fallbacks)]
        self.identity: dict[str, Any] = {"candidates": [list(each) for each in self._candidates]}
        if spec.repo and Path(spec.repo).is_dir():
            files = (path for path in sorted(Path(spec.repo).rglob("*")) if path.is_file())
            stats = [(path.relative_to(spec.repo).as_posix(), path.stat()) for path in files]
            self.identity["files"] = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    def open(self, previous: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any]:
        """Open the first available candidate, or the one that an interrupted preparation has used."""
        tried = [(previous["repo"], previous["revision"])] if previous else self._candidates
        gone: list[str] = []
        for repo, revision in tried:
            reason = self._load(repo, revision)
            if reason is None:
                self._label = repo.rstrip("/").rsplit("/", 1)[-1]
                for each in gone:
                    log(f"warning: {each}; reading {_name(repo, revision)} instead")
                return previous or {"repo": repo, "revision": revision, "gone": gone}
            gone.append(f"{_name(repo, revision)} is not available ({reason})")
        raise UserError(f"{'; '.join(gone)}; choose another with data.repo=, or give a folder with data.path=")

    def _load(self, repo: str, revision: str | None) -> str | None:
        """Open the dataset. Return None, or the reason why it is not available, so that the next candidate is tried."""
        if not Path(repo).is_dir() and not _offline():
            _check_network(repo)
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub.errors import HfHubHTTPError

        try:
            builder = load_dataset_builder(repo, revision=revision)
            _refuse_foreign_files(builder, repo)
            self._splits = dict(builder.as_streaming_dataset())
        except DatasetNotFoundError as error:
            return str(error).splitlines()[0]
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403, 404):
                return f"HTTP {error.response.status_code}"
            raise _interrupted(repo, error) from error
        except ConnectionError as error:
            if _offline():
                raise UserError(
                    f"{_name(repo, revision)} is not in the local cache and HF_HUB_OFFLINE is set; "
                    "unset it, or give a folder with data.path="
                ) from error
            raise _interrupted(repo, error) from error
        except ValueError as error:
            raise UserError(f"data.repo={repo}: {str(error).splitlines()[0]}") from error
        return None

    def parts(self) -> list[Part]:
        known = {name: split for name, split in SPLITS.items() if name in self._splits}
        if "train" not in known:
            raise UserError(
                f"data.repo={self._label} has no train split (it has: {', '.join(self._splits)}); choose another data.repo="
            )
        alone = len(known) == 1
        return [
            Part(f"{name}/{index}", NOMINAL_PART_BYTES, None if alone else split)
            for name, split in known.items()
            for index in range(self._splits[name].num_shards)
        ]

    def overview(self) -> Overview:
        own = next((name for name, split in SPLITS.items() if split == "val" and name in self._splits), "")
        others = tuple(f"{name}/" for name in self._splits if name not in SPLITS)
        return Overview(f"{own}/" if own else "", not_read=others)

    def documents(self, part: Part) -> Iterator[Document | None]:
        name, index = part.name.split("/")
        stream = self._splits[name]
        shard = stream.shard(num_shards=stream.num_shards, index=int(index))
        reading = Reading(self._spec.text_key, self._spec.bad_documents)
        try:
            for number, row in enumerate(shard, start=1):
                record = record_of(row, f"{self._label} {part.name}: row {number}", reading)
                yield Document(record.text, record.source or self._label, part.split) if record else None
        except _network_errors() as error:
            raise _interrupted(self._label, error) from error


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


def _parsed(name: str) -> tuple[str, str | None]:
    repo, _, revision = name.partition("@")
    return repo, revision or None


def _name(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo


def _offline() -> bool:
    return any(
        os.environ.get(key, "").upper() in ("1", "TRUE", "YES", "ON")
        for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def _check_network(repo: str) -> None:
    """Raise UserError without a network. `datasets` would retry for 23 s before it reports that."""
    if reason := why_unreachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), CONNECT_TIMEOUT_S):
        raise UserError(
            f"no network: {reason}, so {repo} cannot be downloaded; give a folder with data.path=, or set HF_HUB_OFFLINE=1"
            " to use the local cache"
        )


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that `datasets` may raise if a connection breaks or a file is temporarily not available.

    Its HTTP library depends on its version; a library that has raised has been imported.
    """
    raised = [("httpx", "HTTPError"), ("aiohttp", "ClientError"), ("requests", "RequestException")]
    loaded = [getattr(sys.modules[module], name) for module, name in raised if module in sys.modules]
    return (ConnectionError, TimeoutError, FileNotFoundError, *loaded)


def _interrupted(repo: str, error: Exception) -> MachineError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return MachineError(f"the network failed while reading {repo} ({reason}); run the same command again to continue")
