"""Imports point one way, and some libraries are used in one place: read from the source, not from what was loaded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("budget", "model", "data", "evals", "run", "training")
SWEEPS = (
    "sweeps",
    "hydra_plugins",
)  # beside the scripts: they know the configuration, nothing knows them but the command line
RUNNING = ("train", "session", "settle", "recover", "assemble", "finish")
SCRIPTS = (*RUNNING, "plan", "evaluate", "sample", "config", "checks", "command_line")
FILES = sorted(path for name in (*PACKAGES, *SWEEPS) for path in (ROOT / name).rglob("*.py")) + [
    ROOT / f"{s}.py" for s in SCRIPTS
]
HYDRA_ALLOWED = {
    "cli/launch.py",
    "sweeps/engine/hydra_callback.py",
    "sweeps/engine/wandb_agent.py",
    "hydra_plugins/isolated_launcher.py",
}
# workspace.py describes a view of a project to wandb-workspaces, before and apart from any run.
WANDB_ALLOWED = {"run/tracking/logger.py", "run/tracking/workspace.py"}
CLOCK_ALLOWED = {"budget/clock.py"}
TORCH_FREE = (
    "budget/clock.py",
    "budget/flops.py",
    "device/specs.py",
    "budget/laws/published.py",
    "budget/planner/planner.py",
    "budget/planner/messages.py",
    "budget/planner/candidates.py",
    "budget/planner/trial_search.py",
    "training/trial_client.py",
    "model/config.py",
    "model/optim/settings.py",
)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, except for type checking alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_what_it_may(path: Path) -> None:
    name, package = relative(path), relative(path).split("/")[0]
    roots = {module.split(".")[0] for module in imports(path)}
    assert "train" not in roots
    if package in PACKAGES:
        assert not roots & {*SCRIPTS, *SWEEPS}, "packages do not know the scripts or their configuration"
    if package in SWEEPS:
        assert "torch" not in roots, "a sweep holds no device: its jobs do"
    if package == "model":
        assert not roots & {"data", "budget", "run", "evals"}
    if package == "data":
        assert not roots & {"model", "budget", "run", "evals"}
    if package == "budget":
        own = {module for module in imports(path) if module.split(".")[0] in PACKAGES}
        assert all(module == "model.config" or module.startswith("budget.") for module in own)
    if name not in HYDRA_ALLOWED:
        assert not roots & {"hydra", "omegaconf"}
    if name not in WANDB_ALLOWED:
        assert not roots & {"wandb", "wandb_workspaces"}
    if name in TORCH_FREE:
        assert "torch" not in roots
    assert "pickle" not in roots


@pytest.mark.parametrize("path", [p for p in FILES if relative(p) not in CLOCK_ALLOWED], ids=relative)
def test_only_the_clock_reads_the_clock(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & {"time", "datetime", "timeit"}


def test_the_loop_fits_on_one_screen() -> None:
    """The loop stays under 60 lines, shows its forward, backward and update, and no line is more than four levels deep."""
    tree = ast.parse((ROOT / "train.py").read_text())
    fit = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "fit")
    loop = next(node for node in ast.walk(fit) if isinstance(node, ast.While))
    assert loop.end_lineno is not None
    assert loop.end_lineno - loop.lineno < 60
    source = ast.unparse(loop)
    assert "forward_backward(" in source
    assert ".update()" in source
    assert max(node.col_offset for node in ast.walk(fit) if isinstance(node, ast.stmt)) <= 4 * 4


# What runs code or opens a hole, wherever it stands. bench/ is exempt: a peer that it is compared with reads a pickle.
NOT_OURS = ("bench", "outputs", "multirun", "prepared")  # bench runs other trainers; the rest is what users make
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in NOT_OURS and path.name[0] != "."]
EVERYWHERE = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in folder.rglob("*.py"))])
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
RUNNERS |= {"yaml.full_load", "tempfile.mktemp", "pandas.read_pickle", "torch.hub.load"}
NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN = {("shell", True), ("trust_remote_code", True), ("weights_only", False), ("allow_pickle", True)}


def dangers(source: str) -> list[str]:
    """What of the lists above a source does, with the line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: getattr(word.value, "value", "not a constant") for word in node.keywords}
            wrong = name in RUNNERS or (name in NEEDED and given.get(NEEDED[name][0]) is not NEEDED[name][1])
            # what is not a constant may be anything
            asked = [key for key, bad in FORBIDDEN if given.get(key) in (bad, "not a constant")]
            if wrong or asked:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", EVERYWHERE, ids=relative)
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(path: Path) -> None:
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from dill import loads",
        "eval('1')",
        "exec(text)",
        "__import__(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "os.system(text)",
        "load_dataset(repo, trust_remote_code=True)",
    ],
)
def test_each_danger_is_seen(source: str) -> None:
    assert len(dangers(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile(x)", "torch.compile(m)", "torch.load(p, weights_only=True)", "yaml.safe_load(t)"],
)
def test_what_only_looks_like_one_is_left_alone(source: str) -> None:
    assert dangers(source) == []
