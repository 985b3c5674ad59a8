"""A whole run on a mix, started like a user's: its records say what was drawn from each source, and what it scored."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, folder_of
from tests.copies import copied


def test_a_run_on_a_mix_records_each_source(tmp_path: Path) -> None:
    words = ["river", "stone", "house", "tree", "walks", "sings"]
    rng = random.Random(0)
    for name, lines in (("prose", 300), ("code", 60)):
        (tmp_path / f"{name}.txt").write_text("".join(" ".join(rng.choices(words, k=8)) + "\n" for _ in range(lines)))
    own = {"data=mix", "data.tokenizer=bpe-300", "eval.tokens=100000", "budget.steps=3", "name=t"}
    own |= {"data.mix={prose.txt: 3, code.txt: 1}"}
    options = {word for word in TINY if word not in ("data=text", "data.tokenizer=bytes", "eval.tokens=2000")}
    answer = copied([str(ROOT / "train.py"), *sorted(options | own)], tmp_path, 120)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    folder = folder_of(tmp_path, "t")
    result = json.loads((folder / "result.json").read_text())
    data, scores = result["data"], result["eval"]
    assert data["source"] == "mix"
    mix = data["mix"]
    assert {name: source["weight"] for name, source in mix.items()} == {"prose.txt": 0.75, "code.txt": 0.25}
    assert sum(source["tokens"] for source in mix.values()) == result["spent"]["tokens"] == 3 * 256
    assert sum(source["train_tokens"] for source in mix.values()) == data["train_tokens"]
    for source in mix.values():
        assert source["epochs"] == pytest.approx(source["tokens"] / source["train_tokens"])
        assert len(source["fingerprint"]) == 64
    repeats = [source["weight"] / source["train_tokens"] for source in mix.values()]
    assert data["epochs"] == pytest.approx(3 * 256 * max(repeats))
    assert json.loads((folder / "plan.json").read_text())["epochs"] == pytest.approx(data["epochs"])
    # All validation text of both is scored, whatever the weights.
    by_source = scores["by_source"]
    assert sum(source["tokens"] for source in by_source.values()) == scores["tokens"]
    nats = sum(source["tokens"] * source["loss"] for source in by_source.values())
    assert scores["loss"] == pytest.approx(nats / scores["tokens"])
    assert by_source["prose.txt"]["tokens"] == pytest.approx(5 * by_source["code.txt"]["tokens"], rel=0.2)
    report = (folder / "report.html").read_text()
    assert "Sources of the mix" in report
    assert "mix of prose.txt 0.75, code.txt 0.25, bpe-300" in answer.stdout
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("by source")]
    for name, source in by_source.items():
        assert f"{name} {mix[name]['weight']:.3g}: {mix[name]['epochs']:.2f} epochs, loss {source['loss']:.4f}" in line
