"""data.mix on the command line and in files: names of presets, paths, weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from budget.planner.planner import make_plan
from cli.compose import as_yaml, checked_config, register_schemas
from common.errors import UserError
from config import CONF, Config, identity
from data.corpus import load_corpus
from tests.copies import copied
from training.corpus_text import prepared_text, spec_of
from training.plan_run import limits_of, request_for

ROOT = Path(__file__).parents[2]


def composed(*words: str) -> Config:
    from hydra import compose, initialize_config_dir

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Config = checked_config(compose("config", ["budget.steps=5", *words]))
    return config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with text under several names."""
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "texts/b-1.txt", "two words.txt", "a=b.txt"):
        (tmp_path / name).write_text("some text\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("{texts:1}", ["texts"]),
        ("{texts/a.txt: 0.8, texts/b-1.txt: 0.2}", ["texts/a.txt", "texts/b-1.txt"]),
        ("{texts/*.txt: 2, stdlib: 1}", ["stdlib", "texts/*.txt"]),
        ("{./texts: 1}", ["./texts"]),
        ("{two words.txt: 1}", ["two words.txt"]),
        (r"{a\=b.txt: 1}", ["a=b.txt"]),
        ('{free: {weight: 1, source: text, path: "a=b.txt"}}', ["free"]),
        ("{slimpajama: 8, texts: 2}", ["slimpajama", "texts"]),
    ],
)
def test_names_are_typed_as_hydra_reads_them(here: Path, typed: str, names: list[str]) -> None:
    spec = spec_of(composed(f"data.mix={typed}"))
    assert spec.source == "mix"
    assert [each.name for each in spec.mix] == names
    assert sum(each.weight for each in spec.mix) == pytest.approx(1)


def test_an_absolute_path_is_a_name(here: Path) -> None:
    (only,) = spec_of(composed(f"data.mix={{{here}/texts/a.txt: 3}}")).mix
    assert (only.spec.source, only.spec.path, only.weight) == ("text", f"{here}/texts/a.txt", 1.0)


def test_a_preset_brings_its_options_and_the_run_the_others(here: Path) -> None:
    words = ("data=mix", "data.mix={slimpajama: 8, texts: 2}", "data.tokenizer=gpt2", "data.bad_documents=skip")
    pajama, own = spec_of(composed(*words, "data.max_bytes=1000")).mix
    preset = yaml.safe_load((CONF / "data" / "slimpajama.yaml").read_text())
    assert {name: getattr(pajama.spec, name) for name in ("source", "repo", "revision", "max_bytes")} == {
        name: preset[name] for name in ("source", "repo", "revision", "max_bytes")
    }
    assert pajama.spec.fallbacks == tuple(preset["fallbacks"])
    assert (own.spec.source, own.spec.path, own.spec.max_bytes, own.spec.repo) == ("text", "texts", 1000, None)
    for each in (pajama, own):
        assert (each.spec.tokenizer, each.spec.bad_documents, each.spec.validation_fraction) == ("gpt2", "skip", 0.01)
    assert pajama.weight == pytest.approx(0.8)


def test_a_source_is_prepared_as_it_is_alone(here: Path) -> None:
    alone = spec_of(composed("data=slimpajama"))
    (mixed,) = spec_of(composed("data=mix", "data.mix={slimpajama: 1}", "data.tokenizer=gpt2")).mix
    assert mixed.spec == alone


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.mix={slimpajam: 1}"], "'slimpajam' is neither a data preset (hub, slimpajama, stdlib"),
        (["data.mix={slimpajam: 1}"], "did you mean slimpajama?"),
        (["data.mix={texts/c.txt: 1}"], "nor the path of a file, folder or glob that exists"),
        (["data.mix={text: 1}"], "data.mix: 'text': data.source=text needs data.path"),
        (["data.mix={texts: 0}"], "the weight of 'texts' is 0"),
        (["data.mix={texts: -1}"], "the weight of 'texts' is -1"),
        (["data.mix={texts: nan}"], "the weight of 'texts' is nan"),
        (["data.mix={texts: inf}"], "the weight of 'texts' is inf"),
        (["data.mix={texts: true}"], "the weight of 'texts' is True; allowed: a positive number"),
        (["data.mix={texts: much}"], "the weight of 'texts' is 'much'"),
        (["data.mix={texts: {path: texts}}"], "the weight of 'texts' is None"),
        (["data.mix={texts: {weight: 1, pth: texts}}"], "pth"),
        (["data.mix={texts: {weight: 1, max_bytes: 0}}"], "data.mix: 'texts': data.max_bytes=0 is out of range"),
        (["data.mix={texts: {weight: 1, tokenizer: bytes}}"], "set data.tokenizer="),
        (["data.mix={texts: 1}", "data.path=texts"], "data.mix does not use data.path=texts"),
        (["data.mix={texts: 1}", "data=slimpajama"], "data.mix does not use data.repo=DKYoon/SlimPajama-6B"),
        (["data.mix={texts: 1}", "data.validation_path=texts"], "data.mix does not use data.validation_path=texts"),
        (["data=mix"], "data.source=mix needs data.mix"),
        (["data.mix={" + ", ".join(f"s{i}: 1" for i in range(65)) + "}"], "names 65 sources; allowed: at most 64"),
    ],
)
def test_a_mistake_in_a_mix_is_one_line(here: Path, words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        composed(*words)
    (line,) = caught.value.messages
    assert expected in line
    assert "\n" not in line


def test_a_saved_configuration_gives_the_same_run(here: Path) -> None:
    """The file of a sweep's job holds the resolved mix, and the job must find the folder that the sweep expects."""
    from hydra import compose, initialize_config_dir

    first = composed("data.mix={stdlib: 0.3, texts: 0.1, slimpajama: 0.1}")
    (here / "saved.yaml").write_text("defaults:\n  - config_schema\n  - _self_\n" + as_yaml(first))
    with initialize_config_dir(str(here), version_base="1.3"):
        again = checked_config(compose("saved"))
    assert again == first
    assert identity(again) == identity(first)
    reordered = composed("data.mix={texts: 0.1, slimpajama: 0.1, stdlib: 0.3}")
    assert identity(reordered) == identity(first)
    assert spec_of(reordered) == spec_of(first)
    assert identity(composed("data.mix={stdlib: 0.3, texts: 0.2, slimpajama: 0.1}")) != identity(first)


def test_a_saved_configuration_needs_no_preset(here: Path) -> None:
    from hydra import compose, initialize_config_dir

    (here / "mine" / "data").mkdir(parents=True)
    (here / "mine" / "data" / "half.yaml").write_text("validation_fraction: 0.5\n")
    head = "defaults:\n  - config_schema\n  - _self_\n"
    (here / "mine" / "own.yaml").write_text(head + "budget: {steps: 5}\ndata: {mix: {half: 2, texts: 1}}\n")
    register_schemas()
    with initialize_config_dir(str(here / "mine"), version_base="1.3"):
        first = checked_config(compose("own"))
    (here / "saved.yaml").write_text(head + as_yaml(first))
    with initialize_config_dir(str(here), version_base="1.3"):
        assert checked_config(compose("saved")) == first
    assert first.data.mix["half"] == {"weight": 2.0, "source": "stdlib", "validation_fraction": 0.5}


def test_a_preset_of_ones_own_is_a_source_and_plan_knows_a_prepared_mix(here: Path) -> None:
    (here / "mine" / "data").mkdir(parents=True)
    (here / "mine" / "data" / "notes.yaml").write_text("source: text\npath: texts\nvalidation_fraction: 0.5\n")
    words = [str(ROOT / "plan.py"), "budget.steps=5", "data=mix", "data.mix={notes: 1, texts/a.txt: 1}", "output=json"]
    words += ["data.tokenizer=bytes", "model.block_size=8", "optim.batch_tokens=8"]
    answer = copied([*words, "-cd", str(here / "mine")], here, 60)
    assert answer.returncode == 0, answer.stderr
    assert yaml.safe_load(answer.stdout)["source"]["corpus"] == "estimate"
    answer = copied(words, here, 60)
    assert answer.returncode == 2
    assert "'notes' is neither a data preset" in answer.stderr


def test_plan_counts_the_epochs_of_a_prepared_mix(here: Path) -> None:
    for name in "ab":
        (here / f"{name}.txt").write_text("word " * 200)
    words = ("data=mix", "data.mix={a.txt: 3, b.txt: 1}", "data.tokenizer=bytes", "model.block_size=8")
    config = composed(*words, "optim.batch_tokens=8")
    estimate = prepared_text(config, 257)
    assert (estimate.size_source, estimate.most_repeated) == ("estimate", "a.txt")
    unknown = composed("data=mix", "data.mix={a.txt: 3, hub: {repo: a/b, weight: 1}}", "data.tokenizer=bytes")
    assert prepared_text(unknown, 257).train_tokens is None
    corpus = load_corpus(spec_of(config), lambda line: None).corpus
    text = prepared_text(config, 257)
    assert text.train_tokens == pytest.approx(corpus.train.mix[0].tokens / 0.75)
    assert estimate.train_tokens == pytest.approx(text.train_tokens, rel=0.02)
    assert (text.most_repeated, text.fingerprint) == ("a.txt", corpus.fingerprint)
    limited = replace(limits_of(config), steps=10_000)
    with pytest.raises(UserError, match=r"epochs of a\.txt, the most repeated source of data\.mix"):
        make_plan(replace(request_for(config, text, None, 0.0), limits=limited))
