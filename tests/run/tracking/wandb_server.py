"""A fake wandb server that implements saved views for wandb's own client."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """`views` holds the saved views by name."""

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL response; empty for all operations that are not needed."""
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        if operation is None:
            return {}
        if operation[1] in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "U", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if operation[1] == "UpsertView2":
            view = {"id": given.get("id") or f"V{len(self.views)}", "name": given["name"]}
            self.views[given["name"]] = {**given, **view}
            return {"upsertView": {"view": view, "inserted": "id" not in given}}
        if operation[1] == "View":
            found = self.views.get(given["viewName"])
            return {"project": {"allViews": {"edges": [{"node": found}] if found else []}}}
        return {}


@contextmanager
def running() -> Iterator[tuple[str, WandbServer]]:
    """A server on a free port of this machine, and its address."""
    server = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
            answer = json.dumps({"data": server.answer(body.get("query", ""), body.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", server
        listening.shutdown()
