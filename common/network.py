"""A quick check whether a server can be reached, before a library that would retry for minutes."""

from __future__ import annotations

import queue
import socket
import threading
import urllib.request
from urllib.parse import urlsplit

NAME_S = 0.5  # seconds for the name look-up, which has no timeout of its own


def why_unreachable(url: str, timeout_s: float) -> str | None:
    """Return why no connection can be made to the server of `url`, or to its proxy; None where it can.

    The answer comes within timeout_s + NAME_S seconds, even if the name server hangs. Nothing is sent.
    """
    try:
        host, port = _target(url)
    except ValueError as error:
        return f"the address of its server or proxy cannot be read ({error})"
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
            answers.put(None)
        except Exception as error:  # also UnicodeError, for a host name that cannot be encoded
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        failure = answers.get(timeout=timeout_s + NAME_S)
    except queue.Empty:
        return f"{host}:{port} cannot be reached: connecting took more than {timeout_s + NAME_S:g} s"
    if failure is None:
        return None
    return f"{host}:{port} cannot be reached: {' '.join(str(failure).split()) or type(failure).__name__}"


def _target(url: str) -> tuple[str, int]:
    """Return host and port to connect to; those of the proxy, where the environment names one for this server."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
