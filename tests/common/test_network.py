"""An unreachable server is reported by name within seconds."""

from __future__ import annotations

import socket
import threading

import pytest

from common.network import why_unreachable


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def port() -> int:
    """Return a port without a listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_server_that_listens_is_reached_also_behind_a_proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", port)):
        assert why_unreachable(f"http://127.0.0.1:{port}/path", 2.0) is None
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        assert why_unreachable("https://no.such.host.example", 2.0) is None


def test_an_unreachable_server_is_named_with_the_reason(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "refused" in (why_unreachable(f"http://127.0.0.1:{port}", 2.0) or "")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    answer = why_unreachable("https://no.such.host.example", 2.0) or ""
    assert answer.startswith(f"127.0.0.1:{port} cannot be reached"), "it is the proxy that does not answer"


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: released.wait(60))
    assert "took more than 0.6 s" in (why_unreachable("https://server.example", 0.1) or "")
    released.set()


@pytest.mark.parametrize("url", ["http://server:port", "http://[::1"])
def test_an_invalid_address_is_a_reason_and_not_a_traceback(url: str) -> None:
    assert "cannot be read" in (why_unreachable(url, 1.0) or "")
