"""A server that wandb's own client takes for wandb's: it keeps what runs send, as the real one does, and nothing else.

Lines of a run's history are put where the client says they belong, so that a client that begins from 0 again overwrites
the curve of the one before it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FILE_STREAM = re.compile(r"/files/(?P<entity>[^/]+)/(?P<project>[^/]+)/(?P<run>[^/]+)/file_stream")
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"
OWNER = {"id": "E", "name": "me"}


class Run:
    """What the server knows of a run."""

    def __init__(self) -> None:
        self.variables: dict[str, Any] = {}
        self.lines: dict[str, list[str]] = {}
        self.exit_code: int | None = None

    def put(self, name: str, offset: int, content: list[str]) -> None:
        kept = self.lines.setdefault(name, [])
        kept[offset : offset + len(content)] = content

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get(HISTORY, [])]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get(SUMMARY, [])
        return json.loads(lines[-1]) if lines else {}

    @property
    def config(self) -> dict[str, Any]:
        found = json.loads(self.variables.get("config") or "{}")
        return {key: entry["value"] for key, entry in found.items() if isinstance(entry, dict) and "value" in entry}


class WandbServer:
    """`runs` by their id; `views` by their name, as sent. Files of runs are taken and forgotten."""

    def __init__(self) -> None:
        self.address = ""
        self.runs: dict[str, Run] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.requests = 0

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        known = getattr(self, f"_{operation[1]}", None) if operation else None
        return known(given) if known else {}

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "U", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    _GetDefaultEntity = _Viewer

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        bucket = None if run is None else self._bucket(given["name"], run)
        return {"model": {"id": "P", "name": given["project"], "entity": OWNER, "bucket": bucket}}

    def _bucket(self, name: str, run: Run) -> dict[str, Any]:
        return {
            "id": name,
            "name": name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.variables.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(run.lines.get(HISTORY, [])),
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", [])),
            "historyTail": json.dumps(run.lines.get(HISTORY, [])[-1:]),
            "eventsTail": json.dumps(run.lines.get("wandb-events.jsonl", [])[-1:]),
            "config": run.variables.get("config") or "{}",
            "tags": run.variables.get("tags") or [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"] or given["id"]
        run = self.runs.setdefault(name, Run())
        run.variables |= {key: value for key, value in given.items() if value is not None}
        project = {"id": "P", "name": given.get("project") or "stint", "entity": OWNER}
        return {"upsertBucket": {"bucket": {**self._bucket(name, run), "project": project}, "inserted": True}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.address}/upload"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        view = {"id": given.get("id") or f"V{len(self.views)}", "name": given["name"]}
        self.views[given["name"]] = {**given, **view}
        return {"upsertView": {"view": view, "inserted": "id" not in given}}

    def _View(self, given: dict[str, Any]) -> dict[str, Any]:
        view = self.views.get(given["viewName"])
        return {"project": {"allViews": {"edges": [{"node": view}] if view else []}}}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            self.runs[run].put(name, part["offset"], part["content"])
        if sent.get("complete"):
            self.runs[run].exit_code = sent.get("exitcode")


@contextmanager
def running() -> Iterator[tuple[str, WandbServer]]:
    """A server on a free port of this machine, and its address."""
    server = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.requests += 1
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if found := FILE_STREAM.fullmatch(self.path):
                server.stream(found["run"], body)
                self.reply({})
            else:
                self.reply({"data": server.answer(body.get("query", ""), body.get("variables") or {})})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply({})

        def do_GET(self) -> None:
            self.reply({})

        def reply(self, content: dict[str, Any]) -> None:
            answer = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing on the console."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{listening.server_address[1]}"
        yield server.address, server
        listening.shutdown()
