"""Loading a model: exact, or refused in one line without using much memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from data.tokenizers.tokenizer import get_tokenizer
from model.config import Shape
from model.gpt import GPT
from run.checkpoint import file_hash, save_weights
from run.load_model import load_model
from tests.conftest import ROOT
from tests.copies import copied

SHAPE = Shape(2, 1, 32, 16, 320, position="rotary", tie=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    digest = save_weights(tmp_path / "model.safetensors", GPT(SHAPE))
    about = {"format": 1, "shape": SHAPE.to_dict(), "sha256": digest}
    (tmp_path / "model.json").write_text(json.dumps(about))
    get_tokenizer("bytes", None, tmp_path, "").save(tmp_path / "tokenizer.json")
    return tmp_path


def test_the_compiler_is_not_imported(folder: Path) -> None:
    """It takes seconds, and torch imports it for some operations on tensors without memory."""
    lines = (
        "import os, sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "import torch",
        "from run.load_model import load_model",
        f"load_model({str(folder)!r}, torch.device('cpu'))",
        "os._exit(3 if 'torch._dynamo' in sys.modules else 0)",
    )
    (folder / "load.py").write_text("\n".join(lines))
    answer = copied([str(folder / "load.py")], folder, 120)
    assert answer.returncode == 0, answer.stderr


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(folder), torch.device("cpu"))
    (message,) = caught.value.messages
    assert "\n" not in message
    return message


def changed(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | changes))


def test_a_saved_model_loads_bit_for_bit(folder: Path) -> None:
    torch.manual_seed(0)
    made, read = GPT(SHAPE), load_model(str(folder), torch.device("cpu")).model
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), read.state_dict().values(), strict=True))
    tokens = torch.arange(16).view(1, 16)
    assert torch.equal(made.eval()(tokens), read(tokens))


def test_a_finished_model_of_a_run_that_goes_on_says_so(folder: Path) -> None:
    changed(folder, steps=300)
    (folder / "checkpoint" / "step-000000300").mkdir(parents=True)
    assert load_model(str(folder), torch.device("cpu")).note == ""
    (folder / "checkpoint" / "step-000000400").mkdir()
    note = load_model(str(folder), torch.device("cpu")).note
    assert note.startswith("finished model of step 300; the run was extended since")


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layer": 10**12},
        {"n_embd": 2**40, "n_head": 2**34},
        {"vocab_size": 2**50},
        {"block_size": 2**40},  # no tensor of a rotary model shows its context length
        {"bigram_rows": 2**40},
        {"ffn_hidden": 2**60},
        {"n_layer": -1},
        {"n_layer": "2"},
        {"n_embd": 32.0},
        {"n_layer": True},
        {"position": 7},
        {"dropout": "0"},
        {"unknown": 1},
    ],
)
def test_a_shape_that_asks_for_terabytes_is_refused(folder: Path, sizes: dict[str, object]) -> None:
    changed(folder, shape={**SHAPE.to_dict(), **sizes})
    refused(folder)


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "{}", "[" * 1_000_000, '{"shape": []}'])
def test_an_invalid_model_json(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    refused(folder)


@pytest.mark.parametrize("shape", [[], None, 3, {}])
def test_an_invalid_shape(folder: Path, shape: object) -> None:
    changed(folder, shape=shape)
    with pytest.raises(UserError):
        load_model(str(folder), torch.device("cpu"))


@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_weights_that_are_an_endless_file(folder: Path, target: str) -> None:
    (folder / "model.safetensors").unlink()
    if target == "pipe":
        os.mkfifo(folder / "model.safetensors")
    else:
        (folder / "model.safetensors").symlink_to(target)
    refused(folder)


def test_a_header_that_claims_an_exabyte(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    changed(folder, sha256=file_hash(folder / "model.safetensors"))
    assert "cannot be read as a model" in refused(folder)


def test_a_tokenizer_with_more_ids_than_the_model(folder: Path, tmp_path: Path) -> None:
    """Its ids would be indices out of range, which on a GPU ends the process."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["specials"]["<|endoftext|>"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "100001 ids" in refused(folder)


def message_for(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(path), torch.device("cpu"))
    (message,) = caught.value.messages
    assert message.startswith(f"checkpoint={path}")
    return message.removeprefix(f"checkpoint={path}")


def test_a_folder_that_does_not_exist_is_called_so_with_the_closest_names(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for name in ("run-92ca6783", "mine-00112233", "other"):
        (outputs / name).mkdir(parents=True)
        (outputs / name / "config.yaml").touch()
    (outputs / "zz").mkdir()
    assert message_for(outputs / "run") == f": no such folder; did you mean {outputs}/run-92ca6783?"
    assert message_for(outputs / "mine-00112234") == f": no such folder; did you mean {outputs}/mine-00112233?"
    every = ", ".join(f"{outputs}/{name}" for name in ("mine-00112233", "other", "run-92ca6783"))
    assert message_for(outputs / "zzz") == f": no such folder; {outputs} holds other runs, e.g. {every}"
    assert message_for(outputs / "no" / "zzz") == f": no such folder; {outputs / 'no'} does not exist either"
    assert message_for(outputs / "other" / "zzz") == f": no such folder; {outputs / 'other'} holds no run"


def test_a_folder_without_a_model_says_what_it_is(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "run-1"
    run.mkdir(parents=True)
    assert message_for(run).startswith(" holds no model (model.safetensors and model.json) and no checkpoint")
    (run / "config.yaml").write_text("seed: 1\n")
    assert message_for(run) == " has no checkpoint yet: the run has not begun to train; repeat its command"
    (run / "checkpoint" / "step-000000003").mkdir(parents=True)
    assert message_for(run.parent).endswith("; it holds runs, e.g. run-1")
    assert "checkpoints of an earlier version" in message_for(run)
    (run / "start.json").write_text("{")
    with pytest.raises(UserError, match=r"start\.json is damaged"):
        load_model(str(run), torch.device("cpu"))
    (run / "start.json").write_text("{}")
    assert message_for(run) == " has no intact checkpoint; repeat the run's command"
