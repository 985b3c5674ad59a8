"""Imports point one way, and some libraries are used in one place: read from the source, not from what was loaded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Who may import whom, from the bottom up: each folder or script, and the folders or modules that it may use.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "common": (),
    "model": ("common",),
    "data": ("common",),
    "device": ("common", "model", "data.batch"),
    "budget": ("common", "device.specs", "device.compile_cost", "model.config"),
    "run": ("common", "budget", "model", "data"),
    "evals": ("common", "model", "data", "run"),
    "config": ("common", "budget", "model"),
    "training": ("common", "device", "budget", "model", "data", "evals", "run", "config"),
    "cli": ("common", "device", "budget", "model", "data", "run", "config"),
    "sweeps": ("common", "budget", "model.config", "run", "config", "cli"),
    "hydra_plugins": ("cli", "sweeps"),
    "train": (
        "common",
        "device",
        "budget",
        "model",
        "data",
        "run",
        "config",
        "training",
        "cli",
        "sweeps.engine.launching",
    ),
    "plan": ("common", "device", "budget", "data", "run", "config", "training", "cli"),
    "evaluate": ("common", "device", "data", "evals", "run", "config", "cli"),
    "sample": ("common", "device", "model", "run", "config", "cli"),
}
FILES = [path for name in MAY_IMPORT for path in (sorted((ROOT / name).rglob("*.py")) or [ROOT / f"{name}.py"])]
# Third-party libraries and where they may be imported; "torch" would cost a command that only plans two seconds.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "hydra": ("cli/", "sweeps/", "hydra_plugins/"),
    "omegaconf": ("cli/", "sweeps/", "hydra_plugins/"),
    "wandb": ("run/tracking/logger.py", "run/tracking/workspace.py"),
    "wandb_workspaces": ("run/tracking/workspace.py",),
    "time": ("common/monotonic.py",),
    "datetime": ("common/monotonic.py",),
    "timeit": (),
    "pickle": (),
}
WITHOUT_TORCH = (
    "budget/", "sweeps/", "device/specs.py", "device/compile_cost.py", "training/trial_client.py", "model/config.py",
    "model/optim/settings.py", "run/checkpoint_state.py", "run/saved_model.py", "training/initial_model.py",
)  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, except for type checking alone."""
    tree = ast.parse(path.read_text())
    typing = {id(node) for test in ast.walk(tree) if is_type_checking(test) for node in ast.walk(test)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from data.sources import hub` imports a module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_within(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(f"{allowed}.")


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_what_is_below_it(path: Path) -> None:
    folder = relative(path).split("/")[0].removesuffix(".py")
    ours = [module for module in imports(path) if module.split(".")[0] in MAY_IMPORT]
    assert not [module for module in ours if not any(is_within(module, each) for each in (folder, *MAY_IMPORT[folder]))]


def test_the_table_itself_points_one_way() -> None:
    order = list(MAY_IMPORT)
    for folder, allowed in MAY_IMPORT.items():
        below = order[: order.index(folder)]
        assert all(each.split(".")[0] in below for each in allowed), folder


def test_there_are_no_import_cycles() -> None:
    modules = {relative(path)[:-3].replace("/", ".").removesuffix(".__init__"): path for path in FILES}
    uses = {
        module: {used for each in imports(path) for used in (each, each.rpartition(".")[0]) if used in modules}
        - {module}
        for module, path in modules.items()
    }
    while done := [
        module for module, used in uses.items() if not used
    ]:  # take away what depends on nothing that is left
        uses = {module: used - {*done} for module, used in uses.items() if module not in done}
    assert not uses, f"import cycle among: {sorted(uses)}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_library_is_used_only_where_it_belongs(path: Path) -> None:
    name, roots = relative(path), {module.split(".")[0] for module in imports(path)}
    assert not [each for each in roots & {*ONLY_IN} if not name.startswith(ONLY_IN[each] or "nowhere")]
    if name.startswith(WITHOUT_TORCH):
        assert "torch" not in roots


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


# Calls that run code or are unsafe. Forbidden everywhere except in bench/.
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
def test_each_forbidden_call_is_found(source: str) -> None:
    assert len(dangers(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile(x)", "torch.compile(m)", "torch.load(p, weights_only=True)", "yaml.safe_load(t)"],
)
def test_similar_harmless_calls_are_allowed(source: str) -> None:
    assert dangers(source) == []
