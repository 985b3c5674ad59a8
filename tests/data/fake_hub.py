"""A server on 127.0.0.1 that answers like the Hugging Face Hub, with faults on demand.

It serves the requests that `huggingface_hub` and `datasets` make to read a data set: repository, tree, paths-info and
resolve. Data files are redirected to another path, as the Hub redirects to its CDN; other files are answered directly.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

DATA = (".parquet", ".jsonl", ".json", ".gz", ".zst", ".csv", ".txt", ".arrow")
REPO = re.compile(
    r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>revision|tree|paths-info)/(?P<rest>.*))?"
)
FILE = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
PIECE = 4096  # bytes sent at a time, so that a fault or a slow link takes effect within a file


@dataclass
class Repo:
    """A repository: its files by path, and who may read it ("public", "gated" or "private")."""

    files: dict[str, bytes]
    access: str = "public"

    @property
    def sha(self) -> str:
        listing = json.dumps(
            {path: hashlib.sha256(content).hexdigest() for path, content in sorted(self.files.items())}
        )
        return hashlib.sha1(listing.encode()).hexdigest()


@dataclass
class Fault:
    """What happens to the next `times` requests whose path contains `where`.

    `status` answers with an error; without it, the connection is closed after `after` bytes of the content.
    """

    where: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0


class FakeHub:
    """The server. Change `repos`, `models`, `faults` and `bytes_per_s` at any time; `requests` lists what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.models: set[str] = set()
        self.faults: list[Fault] = []
        self.ranges = True  # whether requests for a part of a file get only that
        self.bytes_per_s = 0.0  # of each data file; 0: not limited
        self.requests: list[str] = []
        self.sent = 0  # bytes of data files
        self.lock = threading.Lock()
        hub = self

        class Bound(_Handler):
            pass

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes], access: str = "public") -> Repo:
        """Add a data set."""
        self.repos[name] = Repo(files, access)
        return self.repos[name]

    def take_fault(self, path: str) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.where in path:
                    fault.times -= 1
                    return fault
        return None

    def downloads(self) -> list[str]:
        """Return the paths of the data files that were asked for, in order, without repetitions."""
        return list(dict.fromkeys(path for path in self.requests if path.startswith("/cdn/")))


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *values: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        form = json.loads(body) if body.startswith("{") else parse_qs(body)
        self._answer(form)

    def _answer(self, form: dict[str, Any] | None = None) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(path)
        fault = self.hub.take_fault(path)
        if fault and fault.status:
            self._send(fault.status, b"", fault.headers)
        elif path.startswith("/cdn/"):
            repo, _, name = path.removeprefix("/cdn/").partition("//")
            self._content(self.hub.repos[repo].files[name], {}, fault)
        elif match := FILE.fullmatch(path):
            self._file(**match.groupdict(), fault=fault)
        elif match := REPO.fullmatch(path):
            self._api(**match.groupdict(), recursive="recursive=true" in url.query.lower(), form=form)
        else:
            self._error(404, "EntryNotFound")

    def _found(self, name: str, revision: str | None) -> Repo | None:
        """Return a repository that may be read at this revision, or answer why not."""
        repo = self.hub.repos.get(name)
        if repo is None or repo.access == "private":
            self._error(401, "RepoNotFound")
        elif revision not in (None, "main", repo.sha):
            self._error(404, "RevisionNotFound")
        else:
            return repo
        return None

    def _api(
        self, kind: str, repo: str, verb: str | None, rest: str | None, recursive: bool, form: dict[str, Any] | None
    ) -> None:
        if kind == "models":
            return self._json({"id": repo}) if repo in self.hub.models else self._error(401, "RepoNotFound")
        revision, _, folder = (rest or "main").partition("/")
        found = self._found(repo, revision)
        if found is None:
            return None
        if verb == "tree":
            return (
                self._json(_tree(found, folder, recursive))
                if _exists(found, folder)
                else self._error(404, "EntryNotFound")
            )
        if verb == "paths-info":
            wanted = (form or {}).get("paths", [])
            return self._json([_entry(found, path) for path in wanted if path in found.files])
        return self._json(
            {
                "_id": "0",
                "id": repo,
                "sha": found.sha,
                "private": False,
                "gated": "auto" if found.access == "gated" else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in found.files],
            }
        )

    def _file(self, repo: str, revision: str, path: str, fault: Fault | None) -> None:
        found = self._found(repo, revision)
        if found is None:
            return None
        if found.access == "gated":
            return self._error(403, "GatedRepo")
        if path not in found.files:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": found.sha})
        content = found.files[path]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Repo-Commit": found.sha, "ETag": tag, "Accept-Ranges": "bytes"}
        if not path.endswith(DATA):
            return self._content(content, headers, fault)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": tag, "Location": f"/cdn/{repo}//{path}"}
        return self._send(302, b"", headers)

    def _content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        """Send a file or the range of it that was asked for, as slowly as the link allows."""
        status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and self.hub.ranges:
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers = headers | {"Content-Range": f"bytes {start}-{stop}/{len(content)}"}
            status, content = 206, content[start : stop + 1]
        self._begin(status, len(content), headers)
        if self.command == "HEAD":
            return
        cut = fault.after if fault else len(content)
        rate = self.hub.bytes_per_s if self.path.startswith("/cdn/") else 0
        for start in range(0, min(cut, len(content)), PIECE):
            piece = content[start : min(start + PIECE, cut)]
            if rate:
                threading.Event().wait(len(piece) / rate)
            try:
                self.wfile.write(piece)
            except OSError:  # the reader was killed
                self.close_connection = True
                return
            if self.path.startswith("/cdn/"):
                with self.hub.lock:
                    self.hub.sent += len(piece)
        if fault:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self._begin(status, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self, status: int, size: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()


def _exists(repo: Repo, folder: str) -> bool:
    return not folder or any(path.startswith(f"{folder}/") for path in repo.files)


def _entry(repo: Repo, path: str) -> dict[str, Any]:
    return {
        "type": "file",
        "path": path,
        "size": len(repo.files[path]),
        "oid": hashlib.sha1(repo.files[path]).hexdigest(),
    }


def _tree(repo: Repo, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder, with those of its folders if `recursive`."""
    prefix = f"{folder}/" if folder else ""
    inside = [path for path in repo.files if path.startswith(prefix)]
    parents = {
        prefix + "/".join(parts[:depth])
        for parts in (path.removeprefix(prefix).split("/") for path in inside)
        for depth in range(1, len(parts))
    }
    entries = [{"type": "directory", "path": path, "size": 0, "oid": "0"} for path in sorted(parents)]
    entries += [_entry(repo, path) for path in inside]
    return [each for each in entries if recursive or "/" not in each["path"].removeprefix(prefix)]


@contextmanager
def running_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a fake Hub that this process uses instead of the real one, with its caches below `home`.

    The libraries read their environment when they are imported, which another test may have done.
    """
    import datasets
    import datasets.config
    import huggingface_hub.constants as constants
    from huggingface_hub import HfFileSystem

    hub = FakeHub()
    for name, value in environment(hub, home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for module, name, value in (
        (constants, "ENDPOINT", hub.endpoint),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"),
        (constants, "HF_HUB_CACHE", str(home / "hub")),
        (constants, "HF_TOKEN_PATH", str(home / "token")),
        (datasets.config, "HF_ENDPOINT", hub.endpoint),
        (datasets.config, "HUB_DATASETS_URL", hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"),
        (datasets.config, "HF_DATASETS_CACHE", home / "datasets"),
        (datasets.config, "STREAMING_READ_MAX_RETRIES", 2),
        (datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0),
        (datasets.config, "STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL", 0),
        (datasets.config, "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL", 0),
        (datasets.config, "STREAMING_OPEN_MAX_RETRIES", 2),
        (datasets.config, "STREAMING_OPEN_RETRY_INTERVAL", 0),
    ):
        monkeypatch.setattr(module, name, value)
    HfFileSystem.clear_instance_cache()
    # It waits between two attempts, a second or more.
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    try:
        yield hub
    finally:
        hub.close()
        HfFileSystem.clear_instance_cache()


def environment(hub: FakeHub, home: Path) -> dict[str, str]:
    """Return the variables that make another process use the fake Hub, with its caches below `home`."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
