from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from run.history import read_metrics
from run.report.plots import smooth, thin
from run.report.run_report import main, write_report

ROOT = Path(__file__).parents[3]
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = '</pre><script>alert("x")</script><img src=http://evil.example/x.png> & "quoted"'

PLAN: dict[str, Any] = {
    "n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "vocab_size": 4096,
    "parameters": 4_194_304, "parameters_law": 4_100_000, "law": "chinchilla-table3",
    "tokens": 4_100_000, "flops": 1.2e13, "steps": 500, "hours": 0.045, "tokens_per_second": 24_000.0, "mfu": 0.39,
    "batch_tokens": 8192, "learning_rate": 1.9e-3, "predicted_loss": 3.8,
    "alternatives": [
        {
            "n_layer": 2, "n_head": 2, "n_embd": 128, "parameters": 1_310_720, "tokens": 9_000_000,
            "tokens_per_second": 61_000.0, "worse": 0.0312, "reason": "0.4x the law's size",
        },
        {
            "n_layer": 8, "n_head": 6, "n_embd": 384, "parameters": 15_700_000, "tokens": 1_100_000,
            "tokens_per_second": None, "reason": "3.9x the law's size",
        },
    ],
    "source": {"tokens_per_second": "measured", "learning_rate": "step-law"},
    "notes": ["the law is extrapolated"],
}  # fmt: skip
RESULT: dict[str, Any] = {
    "schema": 1,
    "status": "finished",
    "stopped_by": "hours",
    "budget": {"hours": 0.05, "flops": None, "tokens": None, "steps": None, "counts": "all"},
    "spent": {
        "hours": 0.0499, "training_hours": 0.046, "flops": 1.23e13, "flops_6nd": 1.04e13,
        "tokens": 4_194_304, "steps": 512, "overshoot_s": -0.4,
    },
    "ledger_s": {"setup": 4.1, "compile": 0, "data": 0.2, "train": 166.0, "eval": 6.1, "checkpoint": 0.9, "idle": 0.3},
    "model": {key: PLAN[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "parameters")},
    "eval": {
        "split": "val", "tokens": 524_288,
        "loss": 3.9012, "loss_se": 0.0123, "perplexity": 49.46, "bits_per_byte": 1.8034, "accuracy": 0.3125,
        "by_source": {
            "wikipedia": {"tokens": 300_000, "loss": 3.7654, "accuracy": 0.33},
            "books": {"tokens": 224_288, "loss": 4.0987, "accuracy": 0.29},
        },
    },
    "throughput": {"tokens_per_second": 25_100.0, "mfu": 0.41, "peak_flops": 1.5e11, "peak_flops_source": "measured"},
    "data": {
        "fingerprint": "abc123", "tokenizer": "bpe-4096", "train_tokens": 16_000_000, "epochs": 0.26,
        "splits": {
            "train": {"documents": 70_000, "tokens": 16_000_000, "bytes": 64_000_000},
            "val": {"documents": 700, "tokens": 524_288, "bytes": 2_100_000},
        },
        "validation_from": "validation/", "files": 12, "not_read": ["README.md", "test/ (3 files)"], "files_not_read": 4,
        "left_out": {"duplicate": 1234, "bad": 5},
    },
    "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu", "git": "deadbeef"},
    "samples": [
        {"prompt": "Once upon", "text": " a time there was a budget"},
        {"prompt": "def ", "text": "def f(): x"},
    ],
    "prepare_s": 12.5,
    "extended_hours": 0.0,
}  # fmt: skip


def training(steps: int, nan_at: int | None = None) -> list[dict[str, Any]]:
    """The curve of a run: warm-up and decay, a noisy falling loss, a steady throughput."""
    noise = np.random.default_rng(0).normal(0, 0.08, steps + 1)
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        share = step / steps
        point = {"step": step, "tokens": step * 8192, "flops": step * 2.4e10, "hours": 0.0012 + 0.046 * share}
        loss = math.nan if step == nan_at else 3.8 + 4.6 * math.exp(-9 * share) + noise[step]
        rate = 1.9e-3 * min(1, 20 * share, 2.5 * (1 - share))
        speed = 25_000 * (1 + noise[step])
        records.append(
            point
            | {"progress": share, "learning_rate": rate, "loss": loss, "grad_norm": 0.5}
            | {"tokens_per_second": speed, "mfu": speed / 61_000}
        )
        if step % max(1, steps // 20) == 0:
            records.append(point | {"val_loss": 3.85 + 4.6 * math.exp(-9 * share)})
    return records


def make_run(folder: Path, records: list[dict[str, Any]] | None = None, **files: Any) -> Path:
    """A finished run; files replaces a file's content, None leaves it out."""
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, Any] = {
        "plan.json": PLAN,
        "result.json": RESULT,
        "status.json": {"status": "finished", "reason": "the budget of hours is spent"},
        "config.yaml": "budget:\n  hours: 0.05\nname: auto\n",
    }
    contents |= {f"{name}.{'yaml' if name == 'config' else 'json'}": content for name, content in files.items()}
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    lines = training(512) if records is None else records
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    return folder


class Page(HTMLParser):
    """Parses a page: checks that tags are balanced, collects text and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    path = write_report(make_run(tmp_path_factory.mktemp("report") / "small-1a2b3c"))
    return path.read_text(encoding="utf-8"), Page(path.read_text(encoding="utf-8"))


FIGURES = (
    "small-1a2b3c", "Status finished", "Stopped by hours", "3.9012 ± 0.0123", "49.46 ± 0.61", "1.8034 ± 0.0057", "31.25 %",
    "Tokens 4.1M 4.19M +2.3%", "Steps 500 512 +2.4%", "Training time 2m42s 2m46s +2.2%", "Tokens/s 24k 25.1k +4.6%",
    "FLOPs 1.2e+13 1.23e+13 +2.5%", "MFU 39 % 41 % +5.1%", "Loss 3.8000 3.9012 +2.7%",
    "0.4 s unused", "1.04e+13 FLOPs as 6ND", "12.5 s of data preparation", "train 2m46s 93.5%", "total 2m58s 100 %",
    "wikipedia 300k 3.765 33.00%", "books 224k 4.099 29.00%",
    "2 2 128 1.31M 9M 61k +3.12% 0.4x the law's size", "8 6 384 15.7M 1.1M – – 3.9x the law's size",
    "learning_rate: step-law", "the law is extrapolated", "a time there was a budget",
    "budget: hours: 0.05 name: auto", "deadbeef", "bpe-4096",
    "train split 70k documents, 16M tokens, 64M bytes", "val split 700 documents, 524k tokens, 2.1M bytes",
    "validation split from validation/", "not read README.md, test/ (3 files)", "documents left out 1,234 duplicate, 5 bad",
    "Loss against tokens", "Loss against time", "training, smoothed", "Throughput over time",
    "Learning rate against progress", "Learning rate against step", "Peak of the device: 150B FLOP/s (measured)",
)  # fmt: skip


def test_every_figure_is_on_the_page(finished: tuple[str, Page]) -> None:
    assert [figure for figure in FIGURES if figure not in finished[1].text] == []


def test_the_sources_of_a_mix_have_a_table(tmp_path: Path) -> None:
    mix = {
        "wikipedia": {"weight": 0.8, "train_tokens": 3_000_000, "tokens": 3_300_000, "epochs": 1.1},
        "<b>code": {"weight": 0.2, "train_tokens": 300_000, "tokens": 825_000, "epochs": 2.75},
    }
    page = page_of(make_run(tmp_path, result={**RESULT, "data": {**RESULT["data"], "mix": mix}}))
    assert "Source Weight Tokens drawn Epochs Validation loss" in page.text
    assert "wikipedia 80 % 3.3M 1.10 3.7654" in page.text
    assert "<b>code 20 % 825k 2.75 –" in page.text
    broken = make_run(tmp_path / "broken", result={**RESULT, "data": {"mix": {"a": 3, "b": {"weight": "x"}}}})
    assert "a – – – –" in page_of(broken).text


def test_page_is_self_contained_and_fits_a_phone(finished: tuple[str, Page]) -> None:
    text, page = finished
    assert "http" not in text
    assert not page.tags & {"script", "link", "iframe", "img", "object"}
    assert all(address.startswith("#") for address in page.addresses)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 600_000


def test_prompt_is_not_shown_twice(finished: tuple[str, Page]) -> None:
    assert finished[0].count("def f(): x") == 0
    assert "<b>def </b>f(): x" in finished[0]


def test_charts_are_small_and_follow_the_colour_scheme(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path, training(20_000))).read_text()
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 5
    assert all(len(picture) < 200_000 and "currentColor" in picture for picture in pictures)
    assert "#010203" not in text
    assert "#000000" not in text


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    result = RESULT | {
        "stopped_by": HOSTILE,
        "samples": [{"prompt": HOSTILE, "text": HOSTILE}],
        "environment": {HOSTILE: HOSTILE},
        "eval": RESULT["eval"] | {"by_source": {HOSTILE: {"loss": 1.0}}},
        "ledger_s": {HOSTILE: 3.0},
    }
    plan = PLAN | {"alternatives": [PLAN["alternatives"][0] | {"reason": HOSTILE}], "law": HOSTILE, "notes": [HOSTILE]}
    status = {"status": "stopped", "reason": HOSTILE}
    records = [{"event": "note", "text": HOSTILE}, *training(10)]
    page = page_of(make_run(tmp_path, records, result=result, plan=plan, status=status, config=HOSTILE))
    assert not page.tags & {"script", "img"}
    assert page.text.count("evil.example") >= 10


def test_rolled_back_points_are_not_read(tmp_path: Path) -> None:
    points = [{"step": step, "loss": 1.0, "try": 1} for step in range(1, 11)]
    again = [{"step": step, "loss": 1.0, "try": 2} for step in range(7, 13)]
    third = [{"step": step, "loss": 1.0, "try": 3} for step in range(5, 15)]
    validation = {"step": 8, "val_loss": 2.0}
    records = [
        *({"event": "resume", "step": 0}, *points, validation, {"event": "note", "text": "n"}),
        *({"event": "resume", "step": 6}, *again, {"event": "resume", "step": 4}, *third),
    ]
    kept = read_metrics(make_run(tmp_path, records))
    assert [(r["step"], r["try"]) for r in kept if "try" in r] == [(s, 1) for s in range(1, 5)] + [
        (s, 3) for s in range(5, 15)
    ]
    assert validation not in kept
    assert [r["event"] for r in kept if "event" in r] == ["resume", "note", "resume", "resume"]
    text = page_of(tmp_path).text
    assert "resumed at step 4" in text
    assert "resumed at step 0" not in text


def test_truncated_and_broken_lines_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, training(30))
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(b"\x00\xff\n[1]\n" + whole[:-25])
    expected = training(30)[:-1]
    assert read_metrics(folder) == expected
    page_of(folder)


def test_missing_files_still_make_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "Status unknown" in page.text
    assert "There is no result.json" in page.text
    assert "No training step was logged" in page.text


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"eval": 3, "spent": null, "samples": "x"}'])
def test_partial_files_still_make_a_page(tmp_path: Path, content: str) -> None:
    page_of(make_run(tmp_path, training(5), plan=content, result=content, status=content))


def test_killed_run_shows_what_it_reached(tmp_path: Path) -> None:
    ledger = {"schema": 1, "ledger_s": {"train": 90.0, "setup": 10.0}, "extended_hours": 0, "clean": False}
    status = {"status": "running", "reason": ""}
    page = page_of(make_run(tmp_path, training(100)[:42], result=None, ledger=ledger, status=status))
    for value in ("Status not finished", "There is no result.json", "Last validation loss", "Steps 500 35", "90.0%"):
        assert value in page.text


def test_diverged_run_shows_the_reason(tmp_path: Path) -> None:
    status = {"status": "diverged", "reason": "the loss of step 57 is nan"}
    result = RESULT | {"status": "diverged", "stopped_by": "diverged", "eval": None}
    page = page_of(make_run(tmp_path, training(100, nan_at=57), result=result, status=status))
    assert "Status diverged" in page.text
    assert "Reason: the loss of step 57 is nan" in page.text
    assert "NaN or infinite at 1 logged steps, first at step 57" in page.text


def test_figures_that_are_not_finite(tmp_path: Path) -> None:
    evaluation = {"loss": None, "perplexity": None, "bits_per_byte": math.inf, "accuracy": 0.0}
    records = [record | {"loss": None} for record in training(5) if "loss" in record]
    page = page_of(make_run(tmp_path, records, result=RESULT | {"eval": evaluation}))
    assert page.text.count("not finite") == 3


def test_budget_added_after_the_end(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, training(600), result=RESULT | {"extended_hours": 0.5}))
    assert "extended by 30m00s" in page.text
    assert "the run has continued to step 600" in page.text


def test_one_spike_does_not_flatten_the_curve(tmp_path: Path) -> None:
    records = training(200)
    records[100] |= {"loss": 1e9}
    picture = re.findall(r"<svg.*?</svg>", write_report(make_run(tmp_path, records)).read_text(), flags=re.DOTALL)[0]
    labels = [float(label) for label in re.findall(r">(\d+)</text>", picture)]
    assert 4 < max(labels) < 30


def test_report_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path, training(5))
    before = write_report(folder).read_text()
    (folder / "opened earlier").hardlink_to(folder / "report.html")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (folder / "config.yaml").write_text("changed: true")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("os.fsync", full)
        write_report(folder)
    assert (folder / "report.html").read_text() == before
    assert not list(folder.glob(".report*"))
    assert "changed: true" in write_report(folder).read_text()
    assert (folder / "opened earlier").read_text() == before


def test_given_records_are_used(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [])
    assert "No training step" not in write_report(folder, training(5)).read_text()


def test_a_hundred_thousand_lines_take_a_second(tmp_path: Path) -> None:
    folder = make_run(tmp_path, training(100_000))
    write_report(make_run(tmp_path / "warm", training(5)))  # imports matplotlib
    began = time.process_time()
    write_report(folder)
    assert time.process_time() - began < 3  # about 1 s; the rest is for a slow machine
    assert len((folder / "report.html").read_bytes()) < 600_000


def test_thin_keeps_the_ends_and_the_spikes() -> None:
    x = np.arange(50_000.0)
    y = np.zeros(50_000)
    y[31_234], y[77] = 9, -9
    short_x, short_y = thin(x, y)
    assert len(short_x) <= 1000
    assert (short_y.max(), short_y.min()) == (9, -9)
    assert (np.diff(short_x) >= 0).all()
    assert thin(x[:10], y[:10])[0] is not None and len(thin(x[:10], y[:10])[0]) == 10


def test_smooth_is_a_centred_mean_that_does_not_follow_the_last_point() -> None:
    line = np.arange(1000.0)
    np.testing.assert_allclose(smooth(line)[:-10], line[:-10])
    flat = np.append(np.zeros(999), 11)
    assert smooth(flat)[-1] == pytest.approx(1)
    noisy = line + np.where(np.arange(1000) % 2, 5, -5)
    assert np.abs(smooth(noisy)[50:-50] - line[50:-50]).max() < 0.5
    assert len(smooth(np.array([3.0]))) == 1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    command = [sys.executable, "-m", "run.report.run_report", str(make_run(tmp_path / "a", training(5)))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "a" / "report.html")


def test_importing_loads_no_slow_library() -> None:
    slow = {"jinja2", "matplotlib", "torch", "rich", "wandb"}
    script = (
        f"import sys, run.report.run_report, run.report.console, sweeps.engine.report; print({slow} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
