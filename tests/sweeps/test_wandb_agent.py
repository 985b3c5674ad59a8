"""Jobs of wandb agents are the same runs, with the same names, as those of the Hydra sweep."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from config import BudgetConfig, Config, WandbConfig
from run.tracking.fields import figures, wandb_summary
from sweeps.engine.job import make_job
from sweeps.engine.wandb_agent import agent_file, main
from tests.conftest import ROOT

# Runs train.py's command line once for each line of standard input, which holds its arguments, and prints the name, mode,
# group and tags of every run that it would start.
RECORDER = """
import json, sys
from pathlib import Path
from hydra.core.global_hydra import GlobalHydra
from cli.launch import launch
from run.directory import run_name
from config import identity
def record(config):
    name = run_name(config.name, identity(config))
    print(json.dumps([name, config.wandb.mode, config.wandb.group, config.wandb.tags]))
for line in sys.stdin:
    GlobalHydra.instance().clear()
    sys.argv = [str(Path("train.py").absolute()), *json.loads(line)]
    launch(record, "config")
"""


def runs(commands: list[list[str]]) -> list[list[Any]]:
    """Name, mode, group and tags of every run that the command lines of train.py would start."""
    lines = "".join(json.dumps(command) + "\n" for command in commands)
    command = [sys.executable, "-c", RECORDER]
    answer = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("[")]


def in_process(folder: Path) -> list[str]:
    """Options with which Hydra runs the jobs in its own process, with the sweep's folder `folder`."""
    return ["hydra/launcher=basic", f"hydra.sweep.dir={folder}"]


def agent_commands(file: dict[str, Any]) -> Iterator[list[str]]:
    """The arguments of train.py that wandb's agent makes for each point of the grid. The file is first converted to YAML and
    JSON and back, as on its way to wandb's server."""
    file = json.loads(json.dumps(yaml.safe_load(yaml.safe_dump(file))))
    assert file["command"][:3] == ["${env}", "python", "train.py"]
    names = list(file["parameters"])
    for point in itertools.product(*(file["parameters"][name]["values"] for name in names)):
        arguments = create_sweep_command_args({"args": {n: {"value": v} for n, v in zip(names, point, strict=True)}})
        words = (arguments[w[2:-1]] if w.startswith("${args") else [w] for w in file["command"][3:])
        yield [word for group in words for word in group]


SWEEPS = (
    ["budget.steps=5"],
    [
        "budget.hours=1e-1",
        "device.peak_flops=1e11",
        "seed=7",
        "name=groups",
        "model=classic,llama",
        "wandb.tags=[a,'b c']",
    ],
    ["budget.steps=5", "seed=7", "name=quoted", "model.dropout=1e-2,null", "data=text", "data.path='a=b,c'"],
)


def test_agents_run_the_same_jobs(tmp_path: Path) -> None:
    by_hydra = runs(
        [["-cd", "sweeps", "-cn", "seeds", *in_process(tmp_path / str(i)), *each] for i, each in enumerate(SWEEPS)]
    )
    by_agents = runs([job for overrides in SWEEPS for job in agent_commands(agent_file("seeds", overrides))])
    assert len({name for name, *_ in by_hydra}) == len(by_hydra) == 3 + 2 + 2
    assert sorted(name for name, *_ in by_hydra) == sorted(name for name, *_ in by_agents)
    assert {mode for _, mode, *_ in by_agents} == {"online"}
    assert sorted(group for _, _, group, _ in by_agents) == ["groups"] * 2 + ["quoted"] * 2 + ["seeds"] * 3


def test_jobs_of_an_agent_are_grouped_and_tagged(tmp_path: Path) -> None:
    one = ["-cd", "sweeps", "-cn", "seeds", "hydra.mode=RUN", "budget.steps=5"]
    found = runs([[*one, "wandb.tags=[mine]", "seed=1"], [*one, "wandb.group=given"], ["budget.steps=5"]])
    assert [run[2] for run in found] == ["seeds", "given", None]
    assert [run[3] for run in found] == [["mine", "seeds", "budget.steps=5", "seed=1"], [], []]


def test_jobs_of_the_launcher_are_grouped_and_tagged_with_swept_options(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"swept": ["seed"]}))
    config = Config(budget=BudgetConfig(steps=5), name="s", wandb=WandbConfig(tags=["mine"]))
    job = make_job(config, 0, ["seed=1", "budget.steps=5"], str(tmp_path))
    written = yaml.safe_load(job.config.read_text())["wandb"]
    assert (written["group"], written["tags"]) == ("s", ["mine", "s", "seed=1"])


BUDGET = "budget.tokens=1e6"


def test_numbers_and_booleans_keep_their_type_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            "seeds",
            "optim.learning_rate=1e-3,0.002",
            "model.bias=true,false",
            "model.dropout=null,0.1",
            "data=a,b",
            BUDGET,
        ]
    )
    file = yaml.safe_load(capsys.readouterr().out)
    assert {name: entry["values"] for name, entry in file["parameters"].items()} == {
        "seed": [1, 2, 3],
        "optim.learning_rate": [0.001, 0.002],
        "model.bias": [True, False],
        "model.dropout": ["null", 0.1],
        "data": ["a", "b"],
    }
    assert (file["method"], file["project"], file["program"]) == ("grid", "stint", "train.py")
    assert "hydra.mode=RUN" in file["command"], "one job, not a sweep of one"


def test_the_agent_uses_the_metric_of_the_sweep() -> None:
    assert agent_file("seeds", [BUDGET])["metric"] == {"name": "eval_loss", "goal": "minimize"}
    metric = agent_file("seeds", [BUDGET, "sweep.metric=accuracy"])["metric"]
    assert metric == {"name": "eval_accuracy", "goal": "maximize"}
    tokenizers = agent_file("seeds", [BUDGET, "sweep.metric=accuracy", "data.tokenizer=bytes,bpe-512"])["metric"]
    assert tokenizers == {"name": "eval_bits_per_byte", "goal": "minimize"}
    assert metric["name"] in figures({"eval": {"accuracy": 0.4}})


def test_the_agent_may_search_by_a_task() -> None:
    words = [
        BUDGET,
        "eval.tasks={my-quiz: {kind: minimal_pairs, path: x}}",
        "sweep.metric=my-quiz",
        "data.tokenizer=bytes,gpt2",
    ]
    metric = agent_file("seeds", words)["metric"]
    assert metric == {"name": "tasks_my_quiz_score", "goal": "maximize"}
    assert metric["name"] in figures(wandb_summary({"tasks": {"my-quiz": {"kind": "minimal_pairs", "score": 0.6}}}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed"], "did you mean seeds"),
        (["seeds", "seed=1", BUDGET], "sweeps nothing"),
        (["seeds"], "error: no budget is set: give budget.hours"),
        (["seeds", "model.dropout=interval(0,1)"], "range without steps"),
        (["seeds", "a=b=c,d"], "KEY=VALUE"),
        (["seeds", "modle.dropout=0"], "modle"),
    ],
)
def test_a_user_error_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = capsys.readouterr()
    assert (stop.value.code, output.out, output.err.count("\n")) == (2, "", 1)
    assert message in output.err
