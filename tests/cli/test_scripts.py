"""evaluate.py, sample.py and plan.py as a user runs them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import PLAIN, PRESETS
from tests.conftest import ROOT, SHARED, TINY, command, folder_of, train
from tests.copies import copied
from tests.run.tracking.test_workspace import drawn, view
from tests.run.tracking.wandb_file import history, read_back, values


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    train(place, "budget.steps=60", "wandb.mode=offline", name="model")
    return folder_of(place, "model")


def script(name: str, *arguments: str, cwd: Path = ROOT, status: int = 0) -> subprocess.CompletedProcess[str]:
    answer = copied([str(ROOT / f"{name}.py"), *arguments], cwd, 120)
    assert answer.returncode == status, answer.stdout + answer.stderr
    return answer


def evaluate(model: Path, path: Path, *arguments: str) -> dict[str, Any]:
    answer = script(
        "evaluate", f"checkpoint={model}", f"data.path={path}", "output=json", "device.threads=1", *arguments
    )
    return json.loads(answer.stdout)


def test_evaluate_agrees_with_a_plain_loop_over_the_text(model: Path, tmp_path: Path) -> None:
    """Every byte of the text and end-of-text is scored once, with a context of at most block_size tokens."""
    from run.load_model import load_model

    text = "import os\n\ndef main() -> None:\n    print(os.getcwd())\n" * 3
    (tmp_path / "t.txt").write_text(text)
    figures = evaluate(model, tmp_path / "t.txt")
    finished = load_model(str(model), torch.device("cpu"))
    ids = [256, *text.encode(), 256]  # end-of-text is the last id of `bytes`, and begins and ends a document
    nats = 0.0
    for start in range(0, len(ids) - 1, 32):
        window = torch.tensor([ids[start : start + 33]])
        logits = finished.model(window[:, :-1]).log_softmax(-1)
        nats -= logits.gather(-1, window[:, 1:, None]).sum().item()
    assert figures["tokens"] == len(ids) - 1
    assert figures["loss"] == pytest.approx(nats / figures["tokens"], abs=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), abs=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]), rel=1e-5)


def test_micro_batch_and_processes_change_no_figure(model: Path, place: Path) -> None:
    text = next((place / "texts").iterdir())
    one = evaluate(model, text, "micro_batch=1", "device.name=cpu")
    many = evaluate(model, text, "micro_batch=37", "device.name=cpu")
    command_line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [f"checkpoint={model}", f"data.path={text}", "output=json", "device.threads=1", "device.name=cpu"]
    answer = subprocess.run(
        [*command_line, str(ROOT / "evaluate.py"), *arguments], capture_output=True, text=True, timeout=120, cwd=place
    )
    assert answer.returncode == 0, answer.stderr
    for other in (many, json.loads(answer.stdout)):
        for key in ("loss", "loss_se", "bits_per_byte", "accuracy", "perplexity"):
            assert other[key] == pytest.approx(one[key], rel=1e-5)
        assert other["fingerprint"] == one["fingerprint"]


def test_evaluate_shows_a_table_by_source(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.txt").write_text(f"text of {name} " * 20)
    (tmp_path / "notes.docx").write_bytes(b"PK")
    lines = script("evaluate", f"checkpoint={model}", f"data.path={tmp_path}").stdout.splitlines()
    assert [line.split()[0] for line in lines[-4:-1]] == ["a", "b", "all"]
    assert "not read: 1 file (notes.docx)" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("checkpoint=nowhere", "data.path=x"), "no such folder"),
        (("checkpoint={model}", "data.path=nowhere.txt"), "nowhere.txt"),
        (("checkpoint={model}",), "data.path is missing"),
        (("checkpoint={model}", "data.path=x", "device=cpu"), "did you mean device.name?"),
        (("checkpoint={model}", "data.path=x", "device.compile=on"), "device.compile is not an option"),
    ],
)
def test_evaluate_refuses_in_one_line(model: Path, arguments: tuple[str, ...], expected: str) -> None:
    answer = script("evaluate", *(a.format(model=model) for a in arguments), status=2)
    assert answer.stderr.count("\n") == 1
    assert expected in answer.stderr


def test_a_damaged_model_is_refused(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert "damaged" in script("sample", f"checkpoint={copy}", status=2).stderr


def test_sample_is_reproducible(model: Path) -> None:
    arguments = ('prompts=["def ","import "]', "tokens=20", "samples=2", "top_k=20", "output=json")
    first, second = (json.loads(script("sample", f"checkpoint={model}", *arguments).stdout) for _ in range(2))
    assert first == second
    assert [entry["prompt"] for entry in first] == ["def ", "def ", "import ", "import "]
    assert first[0]["text"] != first[1]["text"]
    assert all(1 <= entry["tokens"] <= 20 for entry in first)
    plain = script("sample", f"checkpoint={model}", "tokens=10", "temperature=0").stdout
    assert plain.startswith("--- ''")


def test_the_offline_wandb_file_holds_every_metric(model: Path) -> None:
    """wandb's own reader finds every point of metrics.jsonl in the file, with its four axes."""
    files = list((model / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    inspect = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(files[0])]
    answer = subprocess.run(inspect, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    logged = [line for line in answer.stdout.splitlines() if '"history"' in line]
    written = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    points = [point for point in written if "step" in point and "event" not in point]
    assert len(logged) == len(points)
    for key in ("step", "tokens", "flops", "hours", "loss", "learning_rate", "tokens_per_second", "mfu", "val_loss"):
        assert any(key in line for line in logged), key


def test_the_dashboard_draws_what_runs_log(model: Path, tmp_path: Path) -> None:
    """Every figure of `make dashboard` is in the run's wandb file, unless it needs a budget in hours, a measured speed or a
    law fitted to the user's own runs."""
    (path,) = (model / "wandb").glob("offline-run-*/*.wandb")
    records = read_back(path)
    logged = {name for point in history(records) for name in point}
    ends = {n for r in records if r.WhichOneof("record_type") == "summary" for n in values(r.summary.update)}
    elsewhere = {"budget_hours", "off_plan_hours"}
    elsewhere |= {f"{kind}_{name}" for kind in ("plan_predicted", "off_plan") for name in ("tokens_per_second", "loss")}
    curves, figures = drawn(view(tmp_path))
    assert curves <= logged
    assert figures - ends == elsewhere


def test_plan_as_json_has_the_documented_keys() -> None:
    answer = json.loads(script("plan", "budget.flops=3.4e18", "output=json").stdout)
    documented = (
        "n_layer n_head n_embd block_size vocab_size parameters parameters_law tokens flops steps batch_tokens"
        " learning_rate predicted_loss law alternatives"
    )
    assert set(documented.split()) <= set(answer)
    assert answer["parameters"] == pytest.approx(169e6, rel=0.1)
    assert answer["tokens"] == pytest.approx(3.4e9, rel=0.1)


@pytest.mark.parametrize(
    ("options", "changed", "source"),
    [
        (("budget.flops=9e13",), PLAIN, "compute"),
        (("budget.flops=2e14",), {}, "compute"),
        (("budget.flops=9e13", "model.norm=rmsnorm"), PLAIN | {"norm": "rmsnorm"}, "compute"),
        (("budget.flops=9e13", "model=modern"), {}, "fixed"),
        (("budget.flops=9e13", "model=llama"), PLAIN | {"norm": "rmsnorm", "activation": "swiglu"}, "fixed"),
    ],
)
def test_the_plan_chooses_the_block_unless_it_is_set(
    options: tuple[str, ...], changed: dict[str, Any], source: str
) -> None:
    answer = json.loads(script("plan", *options, "output=json").stdout)
    assert answer["block"] == {name: PRESETS["modern"][name] for name in PLAIN} | changed
    assert answer["source"]["block"] == source


def test_a_run_trains_the_block_of_its_plan(place: Path) -> None:
    train(place, "budget.flops=2e11", "budget.steps=60", "model.norm=rmsnorm", name="block")
    folder = folder_of(place, "block")
    shape = json.loads((folder / "model.json").read_text())["shape"]
    assert {name: shape[name] for name in PLAIN} == PLAIN | {"norm": "rmsnorm"}
    words = "rmsnorm, gelu, gpt2 initialisation"
    assert words in (folder / "log.txt").read_text()


def test_plan_for_a_device_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['plan.py', 'budget.hours=3', 'device=a100', 'data.tokenizer=gpt2', 'output=json']\n"
        "import runpy; runpy.run_path('plan.py', run_name='__main__'); assert 'torch' not in sys.modules"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    assert 0.3 < json.loads(answer.stdout)["mfu"] < 0.4


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to take the network away")
def test_no_network_is_needed(place: Path) -> None:
    answer = subprocess.run(
        ["unshare", "-rn", *command(place, "budget.steps=5", name="alone")], capture_output=True, text=True, cwd=place
    )
    if "Operation not permitted" in answer.stderr:
        pytest.skip("this user may not make a network namespace")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.skipif(not (SHARED / "corpus").exists(), reason="needs the corpus beside the checkout")
def test_slimpajamas_own_layout_trains_and_is_scored_by_source(tmp_path: Path) -> None:
    corpus = SHARED / "corpus" / "slimpajama"
    arguments = [
        f"data.path={corpus}",
        "data.tokenizer=bytes",
        "data.max_bytes=3000000",
        "name=slim",
        "budget.steps=20",
    ]
    rest = [argument for argument in TINY if not argument.startswith("data")]
    script("train", "data=slimpajama", *arguments, *rest, cwd=tmp_path)
    run = next((tmp_path / "outputs").glob("slim-*"))
    figures = evaluate(run, corpus / "validation", "tokens=200000")
    assert len(figures["by_source"]) > 1
    assert sum(part["tokens"] for part in figures["by_source"].values()) == figures["tokens"] == 200_000


def test_a_sweep_of_evaluations_ends_with_a_ranking(model: Path, tmp_path: Path) -> None:
    """A file of the user's starts it. A job that fails does not lose the others, and no answer is computed twice."""
    (tmp_path / "blimp").mkdir()
    pairs = [{"sentence_good": f"import {word}\n", "sentence_bad": f"tropmi {word}\n"} for word in ("os", "sys", "re")]
    (tmp_path / "blimp" / "imports.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    sweep = {
        "defaults": ["evaluate", "_self_"],
        "hydra": {"mode": "MULTIRUN", "sweeper": {"params": {"task.ties": "half,good", "tasks": "[blimp],[blimpp]"}}},
        "checkpoint": str(model),
        "task": {"path": str(tmp_path / "blimp")},
        "folder": str(tmp_path / "answers"),
        "device": {"threads": 1},
    }
    (tmp_path / "ties.yaml").write_text(json.dumps(sweep))
    answer = script("evaluate", "-cd", str(tmp_path), "-cn", "ties", cwd=tmp_path, status=2)
    folder = tmp_path / "outputs" / "evaluations" / "ties"
    jobs = json.loads((folder / "ranking.json").read_text())["jobs"]
    assert [(job["job"], job["score"], job["options"]) for job in jobs[:2]] == [
        (0, 1.0, "task.ties=half tasks=[blimp]"),
        (2, 1.0, "task.ties=good tasks=[blimp]"),
    ]
    assert jobs[1]["difference"] == 0
    assert all("did you mean blimp?" in job["error"] for job in jobs[2:])
    assert "blimp: 2 jobs" in answer.stdout
    assert answer.stderr.count("\n") == 1
    assert len((tmp_path / "answers" / "blimp.answers.jsonl").read_text().splitlines()) == len(pairs)
    assert (folder / "2" / "report.html").is_file()
