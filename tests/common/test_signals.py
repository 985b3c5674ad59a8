"""Stopping signals: handled in every phase, and only once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.signals import Interrupted, Signals

ROOT = Path(__file__).parents[2]


def test_a_second_signal_does_not_interrupt_what_the_first_began() -> None:
    """Schedulers send several, and a run that is saving for the first of them has to get to its end."""
    saved = []
    with Signals() as signals:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("heard nothing")
        except Interrupted as stop:
            assert (stop.name, stop.exit_status) == ("SIGTERM", 143)
            os.kill(os.getpid(), signal.SIGUSR1)
            with signals.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                saved.append("all of it")
            os.kill(os.getpid(), signal.SIGHUP)
    assert saved


def test_deferred_code_is_not_interrupted() -> None:
    with Signals() as signals:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert signals.received == "SIGUSR2"
        with pytest.raises(Interrupted, match="SIGUSR2"):
            signals.check()
        os.kill(os.getpid(), signal.SIGUSR1)  # the run is on its way out already


def test_under_nohup_a_closed_terminal_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_control_c_exits_at_once() -> None:
    code = (
        "import os, signal; from common.signals import Interrupted, Signals\n"
        "with Signals():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except Interrupted: os.kill(os.getpid(), signal.SIGINT)\n"
        "print('still there')"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert (answer.returncode, answer.stdout) == (130, b"")
