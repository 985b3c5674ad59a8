"""stint's own runs, as a comparison starts them: train.py in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOKENIZER = "bpe-4096"


def run_stint(place: Path, corpus: str, name: str, seed: int, arguments: list[str]) -> Path:
    """Folder of a finished run. `corpus`: a folder in SlimPajama's layout. An earlier run of this name is removed: its
    seconds were others, so it cannot stand for this one."""
    shutil.rmtree(place / name, ignore_errors=True)
    command = [
        *(sys.executable, "train.py", "data=slimpajama", f"data.path={corpus}", f"data.tokenizer={TOKENIZER}"),
        "data.max_bytes=null",  # as the comparison prepared it for the peer, so that no run has to prepare it anew
        *("samples.prompts=[]", "eval.every=0", "eval.tokens=16384"),
        *(f"seed={seed}", f"output_dir={place / name}", *arguments),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return finished(place, name)


def finished(place: Path, name: str) -> Path:
    """Folder of the run of that name."""
    return next((place / name).glob("*/result.json")).parent
