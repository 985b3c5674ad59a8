"""Every command in docs/coming_from.md is accepted as it stands, and runs with options that make it small."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, TINY, folder_of, train
from tests.copies import copied
from tests.docs.commands import checked

PAGE = (ROOT / "docs" / "coming_from.md").read_text()
# The second column; the first has the commands of the others, which may also have a train.py.
OURS = "\n".join(re.findall(r"^\|[^|]*\|([^|]*)\|", PAGE, re.MULTILINE))
COMMANDS = list(dict.fromkeys(re.findall(r"`(python (?:train|plan|evaluate|sample)\.py [^`]*)`", OURS)))
# Options that would use the network or repeat a run often, and what the reduced command uses instead.
REPLACED = {
    "data=slimpajama": ("data=text", "data.path=texts"),
    "data=hub": ("data=text", "data.path=texts"),
    "data.repo=Skylion007/openwebtext": (),
    "data.tokenizer=EleutherAI/pythia-160m": ("data.tokenizer=bytes",),
    "data.tokenizer=gpt2": ("data.tokenizer=bytes",),
    "wandb.mode=online": (),
    "seed=1,2,3": ("seed=1",),
}
# Replaced because they make a run long or large; TINY sets them again.
LARGE = (
    "budget.",
    "model.n_",
    "model.block_size",
    "optim.batch_tokens",
    "eval.interim_tokens",
    "optim.micro_batch",
    "device.precision",
)


@pytest.fixture(scope="module")
def files(place: Path) -> Path:
    """The files that the commands name, in the working folder of the runs."""
    for name in ("my.txt", "input.txt"):
        (place / name).write_text("A line of text.\n" * 2000)
    (place / "val").mkdir(exist_ok=True)
    (place / "val" / "a.txt").write_text("Another line of text.\n" * 200)
    (place / "prompts.txt").write_text("The \nA line ")
    tokens = place / "data" / "openwebtext"
    tokens.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train.bin", 20_000), ("val.bin", 4000)):
        rng.integers(256, size=count).astype(np.uint16).tofile(tokens / name)
    own = place / "my_conf" / "model"
    own.mkdir(parents=True, exist_ok=True)
    (own / "tiny.yaml").write_text("n_layer: 1\nn_embd: 64\nn_head: 2\n")
    if not list((place / "outputs").glob("coming-*")):
        train(place, "budget.steps=20", name="coming")
    return place


def test_the_page_has_commands_for_each_trainer() -> None:
    assert len(COMMANDS) > 30
    assert [line for line in PAGE.splitlines() if line.startswith("## ")] == [
        "## nanoGPT",
        "## llm-baselines",
        "## litgpt",
        "## Hydra",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted_as_it_stands(command: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    command = command.replace("outputs/NAME", str(folder_of(files, "coming")))
    checked(command.replace("-cd sweeps", f"-cd {ROOT / 'sweeps'}"), monkeypatch)


def slow_if_longer(command: str) -> object:
    """A sweep starts several processes. One of them runs with the suite, the others with the slow tests."""
    is_sweep = any(word in command for word in (" -m ", " -cn "))
    marks = [pytest.mark.slow] if is_sweep and "optim=adamw,muon" not in command else []
    return pytest.param(command, marks=marks)


@pytest.mark.parametrize("command", [slow_if_longer(command) for command in COMMANDS])
def test_a_command_runs(command: str, files: Path) -> None:
    words = shlex.split(command.replace("outputs/NAME", str(folder_of(files, "coming"))))
    script, arguments = words[1], words[2:]
    if script == "train.py":
        arguments = reduced(arguments)
    elif script == "sample.py":
        arguments = [*arguments, "tokens=8"]
    arguments = [str(ROOT / "sweeps") if word == "sweeps" else word for word in arguments]
    line = [str(ROOT / script), *arguments]
    if "hydra/launcher=joblib" in arguments:  # its workers are started anew, which a fork of the tests cannot do
        answer = subprocess.run([sys.executable, *line], cwd=files, capture_output=True, text=True, timeout=120)
    else:
        answer = copied(line, files, 120)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def reduced(arguments: list[str]) -> list[str]:
    """The arguments with a budget of two steps, a tiny model and no network."""
    kept = [word for each in arguments for word in REPLACED.get(each, (each,)) if not word.startswith(LARGE)]
    given = {word.split("=")[0] for word in kept}
    if {"data=tokens"} & set(kept):
        given |= {"data"}
    if "init" in given:  # sizes and tokenizer are the model's
        given |= {
            "model.n_layer",
            "model.n_embd",
            "model.n_head",
            "model.block_size",
            "model.bigram_rows",
            "data.tokenizer",
        }
    if "model=tiny" in kept:
        given |= {"model.n_layer", "model.n_embd", "model.n_head"}
    small = [word for word in TINY if word.split("=")[0] not in given]
    text = [] if "data.path" in given else ["data.path=texts"]
    flags = [word for word in kept if "=" not in word]
    return [*flags, *(word for word in kept if "=" in word), *small, *text, "budget.steps=2", "name=coming-from"]
