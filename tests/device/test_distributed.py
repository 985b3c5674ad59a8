"""Agreement between processes that torchrun started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from device.distributed import World

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from device.distributed import join_world, leave_world
world = join_world("cpu")
answers = {
    "stop": world.broadcast([7 * (world.rank + 1), "hours"]),
    "signal": world.first("SIGTERM" if world.rank == 1 else None),
    "none": world.first(None),
    "text": world.broadcast("ü" * (1 + world.rank)),
    "share": list(range(7))[world.share(7)],
}
leave_world(world)
open(f"{sys.argv[1]}/{world.rank}.json", "w").write(json.dumps(answers))
"""


def test_processes_agree_on_what_rank_0_decides_and_on_a_signal_that_only_one_received(tmp_path: Path) -> None:
    (tmp_path / "agree.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--standalone"]
    subprocess.run(
        [*torchrun, str(tmp_path / "agree.py"), str(tmp_path)],
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [answer.pop("share") for answer in answers] == [[0, 1], [2, 3], [4, 5, 6]]
    assert answers == [{"stop": [7, "hours"], "signal": "SIGTERM", "none": None, "text": "ü"}] * 3


def test_a_world_of_one_returns_its_input() -> None:
    value = object()
    assert World().broadcast(value) is value
    assert World().first(value) is value
    assert World().share(5) == slice(0, 5)
