"""Random command lines: no traceback, no run with invalid values, one line per problem, status 2, and no files.

Each case runs the script's own command in this process, up to the moment when training would start. `make test-slow` tries
thousands of cases, some of them as separate processes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
import plan
import sample
import train
import training.build
import training.setup
from cli.launch import launch
from config import Config, EvaluateConfig, SampleConfig
from tests.data.helpers import texts, write_jsonl
from tests.fuzz import Answer, Started, answer, commands, finite, sane_commands, tunable

ROOT = Path(__file__).parents[2]
PLAN_LIMIT_S = 10.0  # CPU seconds for a plan, which usually takes some hundredths of a second
MODELS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "ffn_hidden", "bigram_rows")
# The options that affect a plan.
PLAN_OPTIONS = (
    "budget.hours", "budget.flops", "budget.tokens", "budget.steps", "budget.counts", "device.peak_flops", "mfu", "law",
    "data.source", "model.dropout", "model.value_embeddings", "model.tie",
    *(f"model.{name}" for name in MODELS),
    "optim.name", "optim.learning_rate", "optim.weight_decay", "optim.beta2", "optim.batch_tokens", "schedule.warmup",
    "plan.aspect_min", "plan.aspect_max", "plan.max_epochs", "plan.corpus_tokens", "explain", "output",
)  # fmt: skip


def cases(few: int, many: int) -> Any:
    """`few` examples in the normal test run, `many` in the slow one."""
    slow = pytest.param(many, marks=[pytest.mark.slow, pytest.mark.timeout(10 * many)])
    return pytest.mark.parametrize("number", [few, slow])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "texts" / "a.jsonl", texts(60))
    return folder


@pytest.fixture(scope="module")
def base(corpus: Path) -> Iterator[list[str]]:
    """A valid command for train.py on a small corpus, with measurements and downloads replaced."""

    def begin(session: Any, corpus: Any, machine: Any, plan: Any, *others: Any) -> None:
        raise Started(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.monotonic._runs_begun", 1)  # each run's clock starts with it, not with pytest
        for module in (training.setup, plan):
            patch.setattr(module, "trial_process", no_trials)
        patch.setattr(train, "initialize_model", begin)
        patch.setattr("device.device.set_up", lambda device, threads: None)
        patch.setattr("device.device.measure_peak", lambda *arguments: 1e10)
        patch.setattr(
            "data.sources.stdlib.source_files", lambda: sorted(Path(subprocess.__file__).parent.glob("a*.py"))[:4]
        )
        patch.setattr("data.sources.stdlib.topics", lambda: iter(()))
        patch.setattr("data.sources.stdlib.docstrings", lambda: iter(()))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TIKTOKEN_CACHE_DIR", str(corpus / "nothing"))
        patch.setattr("tiktoken.load.read_file", no_network)
        yield [
            "data=text", f"data.path={corpus / 'texts'}", "data.tokenizer=bytes", "data.validation_fraction=0.2",
            f"data.cache_dir={corpus / 'prepared'}", "data.workers=1", "budget.steps=3", "device.name=cpu",
        ]  # fmt: skip


@contextmanager
def no_trials(*arguments: object) -> Iterator[None]:
    """Replaces the trial process."""
    yield None


def no_network(*arguments: object) -> None:
    raise ConnectionError("no network")


def run_train(words: list[str]) -> Answer:
    return answer(lambda: launch(train.main, "config"), "train.py", words)


def check_train(answered: Answer) -> None:
    """The command was refused properly, or its plan is valid."""
    if answered.plan is None and answered.status:
        answered.refused()
    elif answered.plan is not None:
        finite(answered.plan.to_dict(), "plan")
        assert answered.plan.steps >= 1
        assert answered.plan.batch_tokens % answered.plan.block_size == 0


def test_the_valid_command_starts(base: list[str]) -> None:
    """Otherwise the tests below would pass if everything were refused."""
    answered = run_train(base)
    assert answered.plan is not None, answered.err
    assert answered.plan.steps == 3


@cases(25, 1200)
def test_train_refuses_or_starts_with_a_valid_plan(base: list[str], number: int) -> None:
    @settings(max_examples=number)
    @given(commands(Config))
    def holds(words: list[str]) -> None:
        check_train(run_train([*base, *words]))

    holds()


@cases(6, 400)
def test_train_with_extreme_valid_values(base: list[str], number: int) -> None:
    names = [name for name in tunable(Config) if name not in ("fresh", "data.source")]

    @settings(max_examples=number)
    @given(sane_commands(Config, names))
    def holds(words: list[str]) -> None:
        check_train(run_train([*base, *words]))

    holds()


@cases(2, 60)
def test_a_few_steps_with_extreme_settings_finish_or_diverge(
    base: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Valid settings may train badly, but never crash."""
    groups = ("optim", "schedule", "eval", "checkpoint", "budget.counts")
    small = ("model.dropout", "model.bias", "model.tie", "model.qk_norm", "model.rope_theta", "model.softcap")
    chosen = [name for name in tunable(Config) if name.startswith(groups) or name in small]
    names = [name for name in chosen if name != "optim.batch_tokens"]
    sizes = ["model.n_layer=1", "model.n_embd=16", "model.n_head=1", "model.block_size=16", "model.bigram_rows=32"]
    quick = [*sizes, "optim.batch_tokens=64", "eval.interim_tokens=64", "plan.max_epochs=1e9"]
    monkeypatch.setattr(train, "initialize_model", training.build.initialize_model)

    @settings(max_examples=number)
    @given(sane_commands(Config, names, most=4))
    def holds(words: list[str]) -> None:
        answered = run_train([*base, *quick, *words])
        assert answered.status in (0, 1, 2)
        if answered.status:
            assert all(line.startswith("error: ") for line in answered.err.splitlines()), answered.err
            assert answered.status == 2 or "diverged" in answered.err

    holds()


@cases(15, 600)
def test_a_plan_is_finite_or_refused(base: list[str], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    made: list[Any] = []

    def planned(config: Config) -> Any:
        made.append(original(config))
        return made[-1]

    original = plan.plan_for
    monkeypatch.setattr(plan, "plan_for", planned)

    @settings(max_examples=number)
    @given(
        st.sampled_from(["budget.hours=3", "budget.flops=1e18", "budget.tokens=1e7", "budget.steps=1000"]),
        st.sampled_from(["a100", "t4", "auto"]),
        sane_commands(Config, list(PLAN_OPTIONS), most=7),
    )
    def holds(limit: str, device: str, words: list[str]) -> None:
        made.clear()
        began = time.process_time()
        answered = answer(plan.main, "plan.py", ["data.tokenizer=bytes", limit, f"device={device}", *words])
        assert time.process_time() - began < PLAN_LIMIT_S
        if not made:
            answered.refused()
            return
        assert answered.status == 0
        assert "nan" not in answered.out.replace("inant", "")
        finite(made[-1].to_dict(), "plan")
        assert made[-1].steps >= 1

    holds()


@cases(12, 300)
def test_plan_refuses_or_plans(base: list[str], number: int) -> None:
    @settings(max_examples=number)
    @given(commands(Config))
    def holds(words: list[str]) -> None:
        answered = answer(plan.main, "plan.py", ["budget.flops=1e15", "data.tokenizer=bytes", *words])
        if answered.status:
            answered.refused()

    holds()


@cases(8, 100)
@pytest.mark.parametrize(("script", "schema"), [(evaluate, EvaluateConfig), (sample, SampleConfig)])
def test_evaluate_and_sample_refuse_a_missing_model(base: list[str], script: Any, schema: type, number: int) -> None:
    name = script.__name__.rpartition(".")[2]

    @settings(max_examples=number)
    @given(commands(schema))
    def holds(words: list[str]) -> None:
        answered = answer(lambda: launch(script.main, name), f"{name}.py", ["checkpoint=nothing", *words])
        if answered.status or not [word for word in words if word.startswith("-")]:
            answered.refused()

    holds()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_separate_processes_refuse_as_well() -> None:
    """The results above do not depend on calling the scripts in this process."""

    @settings(max_examples=40)
    @given(st.sampled_from(["train.py", "plan.py", "evaluate.py", "sample.py"]), commands(Config, most=3))
    def holds(script: str, words: list[str]) -> None:
        bad = [*words, "budget.hours=-1"]  # so that no run starts, whatever the other words are
        with tempfile.TemporaryDirectory() as folder:
            ended = subprocess.run(
                [sys.executable, str(ROOT / script), *bad], capture_output=True, cwd=folder, timeout=120
            )
            files = [path.name for path in Path(folder).rglob("*") if path.is_file()]
        errors = ended.stderr.decode("utf-8", "replace")
        if ended.returncode or not [word for word in words if word.startswith("-")]:
            Answer(ended.returncode, ended.stdout.decode("utf-8", "replace"), errors, None, files).refused()

    holds()


# Cases that once failed.

FOUND: list[tuple[list[str], str]] = [
    (["budget.steps=" + "9" * 5000], "not a count"),
    (["budget.hours=" + "9" * 400], "wrong type"),
    (["data.fallbacks=${seed}"], "int is not a"),
    (["name='a\nb'"], r"a\nb"),
    (["data.cache_dir="], "data.cache_dir='' is empty"),
    (["data.text_key='  '"], "is empty"),
    (["name=" + "x" * 200], "200 characters"),
    (["output_dir=" + "x" * 300], "too long for a path"),
    (["data.path='~nobody-is-called-so/x'"], "home folder of an unknown user"),
    (["device.name=cudaX"], "device.name=cudaX is not known"),
    (["eval.every=1e-300"], "evaluations"),
    (["optim.eps=1e-300"], "optim.eps"),
    (["model.softcap=inf"], "model.softcap=inf"),
    (["model.rope_theta=inf"], "model.rope_theta=inf"),
    (["model.n_layer=1000000000", "model.value_embeddings=true"], "at most 10000"),
    (["model.vocab_size=100"], "model.vocab_size=100 is smaller than the 257"),
    (["model.block_size=64", "optim.batch_tokens=100"], "not a multiple"),
    (["--nonsense"], "unrecognized arguments"),
    (["--resolve"], "add --cfg job"),
    (["-m", "-c", "job"], "cannot be combined"),
    (["--experimental-rerun=x.pickle"], "pickle"),
    (["optim.batch_tokens=1000000000000", "plan.max_epochs=1e9"], "GiB to train"),
    (["budget.flops=glob(*)"], "requires --multirun"),
    (["seed=range(0,1000000000000)"], "requires --multirun"),
    (["model.n_layer=${nothing}"], "nothing"),
]


@pytest.mark.parametrize(("words", "expected"), FOUND, ids=[words[0][:30] for words, _ in FOUND])
def test_found_and_fixed(base: list[str], words: list[str], expected: str) -> None:
    lines = run_train([*base, *words]).refused()
    assert any(expected in line for line in lines), lines


def test_a_path_that_is_not_utf8_works(base: list[str], corpus: Path) -> None:
    strange = corpus / "strange\udcff"
    write_jsonl(strange / "\udce9.jsonl", texts(60))
    answered = run_train([*base, f"data.path='{strange}'"])
    assert answered.plan is not None, answered.err


def test_sizes_that_exceed_any_memory_are_refused_by_plan_and_train(base: list[str]) -> None:
    for call in (
        lambda: answer(plan.main, "plan.py", ["budget.flops=1e24", "device=t4", "model.n_embd=100096"]),
        lambda: run_train([*base, "model.n_layer=500", "model.n_embd=16384", "budget.steps=1"]),
    ):
        (line,) = call().refused()
        assert "GiB" in line
        assert "smaller model." in line
