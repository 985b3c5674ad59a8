"""A fake wandb module that records its calls and fails on demand."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


class FakeRun:
    def __init__(self, fake: FakeWandb) -> None:
        self.fake = fake
        self.summary = dict(fake.summary)

    def define_metric(self, name: str, **options: Any) -> None:
        self.fake.defined.append((name, options))

    def log(self, metrics: dict[str, Any]) -> None:
        self.fake.logged.append(metrics)
        self.fake.on_log()

    def finish(self) -> None:
        self.fake.finished += 1
        self.fake.on_finish()


class FakeWandb(types.ModuleType):
    """The module; the `on_...` functions run inside the calls of the same name."""

    class Settings:
        model_fields = ("silent", "console")

        def __init__(self, **known: Any) -> None:
            assert set(known) == {"silent", "console"}

    def __init__(self) -> None:
        super().__init__("wandb")
        self.modes: list[str] = []
        self.arguments: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}  # the summary on the server
        self.defined: list[tuple[str, dict[str, Any]]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = self.torn_down = 0
        self.on_init: Callable[[str], None] = lambda mode: None
        self.on_log: Callable[[], None] = lambda: None
        self.on_finish: Callable[[], None] = lambda: None

    def init(self, mode: str, **arguments: Any) -> FakeRun:
        self.modes.append(mode)
        self.arguments = arguments
        self.on_init(mode)
        return FakeRun(self)

    def setup(self) -> Any:
        settings = types.SimpleNamespace(base_url="https://api.wandb.example", api_key=None)
        return types.SimpleNamespace(settings=settings)

    def teardown(self) -> None:
        self.torn_down += 1
