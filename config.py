"""Every knob of stint: one dataclass tree, registered with Hydra, so that a typo or a wrong type dies at once.

A knob's comment (its `help`) gives its unit and meaning and is what `--help` prints. null means: chosen by the plan or
by the device. The groups under conf/ only hold named choices of these knobs. Configuration stops at the entry scripts:
the packages receive plain values or small frozen dataclasses.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from budget.devices import BY_NAME
from budget.laws import LAWS
from errors import MachineError, UserError
from model.schedule import mistakes as schedule_mistakes
from model.shape import Shape

CONF = Path(__file__).parent / "conf"


def knob(default: Any, help: str) -> Any:
    """A leaf of the tree with its unit and meaning."""
    return field(default=default, metadata={"help": help})


def names(default: list[str], help: str) -> Any:
    """A leaf that holds a list."""
    return field(default_factory=lambda: list(default), metadata={"help": help})


@dataclass
class BudgetConfig:
    hours: float | None = knob(None, "wall clock of the whole process, hours; null: no such limit")
    flops: float | None = knob(None, "training FLOPs (6N + 12 n_layer n_embd block_size a token); null: no such limit")
    tokens: float | None = knob(None, "training tokens; null: no such limit")
    steps: int | None = knob(None, "optimizer steps; null: no such limit")
    counts: str = knob("all", "what the hours count: all (from process start to exit) | training (steps only)")
    extend_hours: float = knob(
        0.0, "hours on top of budget.hours for a run that exists already; recorded in its ledger"
    )


@dataclass
class DeviceConfig:
    name: str = knob("auto", "auto | cpu | cuda | mps; plan.py also takes a name of the table, e.g. a100")
    threads: int | None = knob(None, "CPU threads; null: every core this process may use")
    precision: str = knob("auto", "auto (bfloat16 where the GPU has it, else float32) | float32 | bfloat16")
    compile: str = knob("auto", "torch.compile: auto (when the budget is long enough to earn it back) | on | off")
    peak_flops: float | None = knob(None, "FLOP/s that MFU is measured against; null: the table's, else measured")


@dataclass
class ModelConfig:
    n_layer: int | None = knob(None, "blocks; null: planned")
    n_head: int | None = knob(None, "attention heads; null: one per 64 of width (128 from width 1024)")
    n_embd: int | None = knob(None, "width; null: planned")
    block_size: int | None = knob(None, "context, tokens; null: 256 below 1e17 FLOPs, 512 below 1e19, else 1024")
    vocab_size: int | None = knob(None, "rows of the vocabulary matrix; null: the tokenizer's, padded to 64")
    ffn_hidden: int | None = knob(None, "feed-forward width; null: 4 n_embd, 8/3 n_embd for swiglu")
    dropout: float = knob(0.0, "share of activations dropped in training, 0..1; 0 is best within one epoch")
    bias: bool = knob(False, "biases in linear layers and layer norms")
    tie: bool = knob(True, "one matrix for embedding and output")
    position: str = knob("rotary", "learned | rotary")
    norm: str = knob("rmsnorm", "layernorm | rmsnorm")
    activation: str = knob("relu2", "gelu | relu2 | swiglu")
    qk_norm: bool = knob(True, "normalise queries and keys")
    initialisation: str = knob("zero", "gpt2 | zero (as gpt2, residual output projections start at 0)")
    rope_theta: float = knob(10000.0, "base of the rotary frequencies")


@dataclass
class DataConfig:
    source: str = knob("stdlib", "stdlib | slimpajama | text")
    path: str | None = knob(
        None, "file, folder or glob; for slimpajama a folder in its own layout; null: built in or Hub"
    )
    text_key: str = knob("text", "key of the text in .jsonl and .parquet; dots go into nested objects")
    tokenizer: str = knob("bpe-4096", "gpt2 | any tiktoken encoding | bytes | bpe-N (trained on the training split)")
    validation_fraction: float = knob(0.01, "share of documents kept for validation where the corpus has no such split")
    repo: str | None = knob(None, "data set on the Hub, owner/name")
    revision: str | None = knob(None, "commit of that data set; null: its newest")
    fallbacks: list[str] = names([], "repo[@revision] to try, in order, where data.repo is gone")
    max_bytes: int | None = knob(None, "stop preparing after this many bytes of text; null: all of it")
    bad_documents: str = knob("refuse", "a line that is not UTF-8, not JSON or has no text: refuse | skip (and count)")
    cache_dir: str = knob("prepared", "folder of prepared corpora")
    workers: int | None = knob(None, "threads that tokenise; null: every core this process may use")


@dataclass
class OptimConfig:
    name: str = knob("adamw", "optimizer: adamw")
    learning_rate: float | None = knob(None, "peak learning rate; null: planned")
    weight_decay: float = knob(0.1, "decoupled weight decay, on matrices only")
    beta1: float = knob(0.9, "decay of the first moment")
    beta2: float | None = knob(None, "decay of the second moment; null: 0.95 from 2^18 tokens a batch, else 0.99")
    eps: float = knob(1e-8, "added to the denominator of Adam")
    grad_clip: float = knob(1.0, "largest norm of the gradient; 0: no clipping")
    batch_tokens: int | None = knob(None, "tokens per optimizer step, a multiple of block_size; null: planned")
    micro_batch: int | None = knob(
        None, "sequences per forward pass; changes speed and memory, not the result; null: what fits"
    )


@dataclass
class ScheduleConfig:
    shape: str = knob("linear", "cosine | linear | wsd | constant, over the share of the budget spent")
    warmup: float = knob(0.05, "share of the budget over which the learning rate rises, 0..1")
    floor: float = knob(0.0, "learning rate at the very end, as a share of the peak")
    decay: float = knob(0.2, "wsd: share of the budget over which it falls at the end")


@dataclass
class EvalConfig:
    tokens: int = knob(262144, "validation tokens of the final evaluation; halved until it fits eval.max_fraction")
    every: float = knob(0.1, "share of the budget between interim evaluations; 0: none")
    interim_tokens: int = knob(16384, "validation tokens of an interim evaluation")
    max_fraction: float = knob(0.05, "largest share of the hours for the final evaluation, and for all interim ones")


@dataclass
class CheckpointConfig:
    max_fraction: float = knob(0.02, "largest share of the time that saving may take; the interval follows from it")
    every_s: float | None = knob(None, "seconds between checkpoints; null: 2 % of the hours, at most 600")


@dataclass
class SamplesConfig:
    prompts: list[str] = names(["def ", "import ", "The "], "prompts continued by the finished model, for the report")
    tokens: int = knob(64, "longest continuation, tokens; 0: no samples")
    temperature: float = knob(0.8, "sampling temperature; 0: the likeliest token")
    top_k: int = knob(50, "sample among this many likeliest tokens")


@dataclass
class WandbConfig:
    mode: str = knob("disabled", "online | offline | disabled")
    project: str = knob("stint", "wandb project")
    entity: str | None = knob(None, "wandb team or user; null: your default")
    group: str | None = knob(None, "wandb group")
    tags: list[str] = names([], "wandb tags")
    timeout_s: float = knob(8.0, "longest wait for wandb at the start and at the end, seconds")


@dataclass
class Config:
    """train.py and plan.py."""

    budget: BudgetConfig = field(default_factory=BudgetConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    name: str = knob("run", "first part of the run's folder name; the second is a hash of the knobs that matter")
    seed: int = knob(1337, "seed of initialisation, data order, dropout and sampling")
    output_dir: str = knob("outputs", "folder of runs")
    fresh: bool = knob(False, "true: set an existing run of the same name aside and start again")
    law: str = knob("chinchilla-table3", "scaling law of the plan: chinchilla-table3 | chinchilla-a2")
    mfu: float | None = knob(None, "share of the device's peak to plan with, 0..1; null: measured, else the table's")
    probe: bool | None = knob(None, "measure candidate shapes on this device; null: train.py does, plan.py does not")
    output: str = knob("text", "text | json: one JSON object on standard output")


@dataclass
class EvaluateDataConfig:
    path: str | None = knob(
        None, "file, folder or glob of any text; null: the validation split the model was made with"
    )
    text_key: str = knob("text", "key of the text in .jsonl and .parquet; dots go into nested objects")
    bad_documents: str = knob("refuse", "a line that is not UTF-8, not JSON or has no text: refuse | skip (and count)")


@dataclass
class EvaluateConfig:
    """evaluate.py."""

    checkpoint: str | None = knob(None, "a run's folder, e.g. outputs/NAME")
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    tokens: int | None = knob(None, "score only this many tokens, from the start; null: all of them")
    micro_batch: int = knob(16, "sequences per forward pass; changes speed and memory, not the result")
    output: str = knob("text", "text | json: one JSON object on standard output")


@dataclass
class SampleConfig:
    """sample.py."""

    checkpoint: str | None = knob(None, "a run's folder, e.g. outputs/NAME")
    prompts: list[str] = names([""], 'prompts to continue, e.g. prompts=\'["def ","The "]\'; empty: a new document')
    device: DeviceConfig = field(default_factory=DeviceConfig)
    samples: int = knob(1, "continuations of each prompt")
    tokens: int = knob(200, "longest continuation, tokens; it ends earlier at the end of the text")
    temperature: float = knob(0.8, "sampling temperature; 0: the likeliest token")
    top_k: int | None = knob(None, "sample among this many likeliest tokens; null: all")
    top_p: float | None = knob(None, "sample among the likeliest tokens that hold this probability; null: all")
    repetition_penalty: float = knob(1.0, "divides the scores of tokens that are there already; 1: off")
    seed: int = knob(1337, "seed of the sampling")
    output: str = knob("text", "text | json: one JSON object on standard output")


SCRIPTS: dict[str, type] = {"config": Config, "evaluate": EvaluateConfig, "sample": SampleConfig}

# -- what may stand where ----------------------------------------------------------------------------------------------

ALLOWED: dict[str, tuple[str, ...]] = {
    "budget.counts": ("all", "training"),
    "device.precision": ("auto", "float32", "bfloat16"),
    "device.compile": ("auto", "on", "off"),
    "data.source": ("stdlib", "slimpajama", "text"),
    "data.bad_documents": ("refuse", "skip"),
    "optim.name": ("adamw",),
    "wandb.mode": ("online", "offline", "disabled"),
    "law": tuple(LAWS),
    "output": ("text", "json"),
}

# (low, high, low itself allowed, high itself allowed); null is always allowed where the knob can be null
RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "budget.hours": (0, 1e6, False, True),
    "budget.flops": (0, 1e30, False, True),
    "budget.tokens": (0, 1e18, False, True),
    "budget.steps": (1, 1e12, True, True),
    "budget.extend_hours": (0, 1e6, True, True),
    "device.threads": (1, 4096, True, True),
    "device.peak_flops": (0, 1e20, False, True),
    "data.validation_fraction": (0, 0.5, False, True),
    "data.max_bytes": (1, 1e18, True, True),
    "data.workers": (1, 4096, True, True),
    "optim.learning_rate": (0, 100, False, True),
    "optim.weight_decay": (0, 100, True, True),
    "optim.beta1": (0, 1, True, False),
    "optim.beta2": (0, 1, True, False),
    "optim.eps": (0, 1, False, True),
    "optim.grad_clip": (0, 1e9, True, True),
    "optim.batch_tokens": (1, 1e12, True, True),
    "optim.micro_batch": (1, 1e9, True, True),
    "eval.tokens": (1, 1e15, True, True),
    "eval.every": (0, 1, True, True),
    "eval.interim_tokens": (1, 1e15, True, True),
    "eval.max_fraction": (0, 1, False, True),
    "checkpoint.max_fraction": (0, 1, False, True),
    "checkpoint.every_s": (0, 1e9, False, True),
    "samples.tokens": (0, 1e6, True, True),
    "samples.temperature": (0, 100, True, True),
    "samples.top_k": (1, 1e9, True, True),
    "wandb.timeout_s": (0, 60, False, True),
    "mfu": (0, 1, False, True),
    "seed": (0, 2**31 - 1, True, True),
    "tokens": (1, 1e15, True, True),
    "micro_batch": (1, 1e9, True, True),
    "temperature": (0, 100, True, True),
    "top_k": (1, 1e9, True, True),
    "top_p": (0, 1, False, True),
    "repetition_penalty": (0, 100, False, True),
}


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted name, help, value) of every knob; `tree` is a config dataclass or an instance of one."""
    hints = get_type_hints(tree if isinstance(tree, type) else type(tree))
    for leaf in fields(tree):
        kind = hints[leaf.name]
        if is_dataclass(kind):
            yield from leaves(kind if isinstance(tree, type) else getattr(tree, leaf.name), f"{prefix}{leaf.name}.")
        else:
            value = None if isinstance(tree, type) else getattr(tree, leaf.name)
            yield f"{prefix}{leaf.name}", leaf.metadata["help"], value


def mistakes(config: Any) -> list[str]:
    """Every impossible value and combination of a configuration, one line each."""
    found = []
    for name, help_text, value in leaves(config):
        if value is None:
            continue
        if name in ALLOWED and value not in ALLOWED[name]:
            found.append(
                f"{name}={value} is not known; allowed: {', '.join(ALLOWED[name])}{_closest(value, ALLOWED[name])}"
            )
        if name in RANGES:
            low, high, with_low, with_high = RANGES[name]
            if not (low < value < high or (with_low and value == low) or (with_high and value == high)):
                bracket = f"{'[' if with_low else '('}{low:g}, {high:g}{']' if with_high else ')'}"
                found.append(f"{name}={value} is out of range; allowed: {bracket} ({help_text})")
    return found + (_run_mistakes(config) if isinstance(config, Config) else _model_mistakes(config))


def _model_mistakes(config: Any) -> list[str]:
    """What evaluate.py and sample.py need."""
    if not config.checkpoint:
        return ["checkpoint is missing; give a run's folder, e.g. checkpoint=outputs/NAME"]
    return []


def _run_mistakes(config: Config) -> list[str]:
    """Combinations that no single range can see."""
    found = []
    budget, data = config.budget, config.data
    if budget.hours is None and budget.flops is None and budget.tokens is None and budget.steps is None:
        found.append(
            "no limit at all: set budget.hours, budget.flops, budget.tokens or budget.steps, e.g. budget.hours=0.05"
        )
    if budget.extend_hours and budget.hours is None:
        found.append(f"budget.extend_hours={budget.extend_hours} extends nothing; it goes with budget.hours")
    if data.source == "text" and not data.path:
        found.append("data.source=text needs data.path=FILE, FOLDER or GLOB")
    if data.source == "stdlib" and data.path:
        found.append(f"data.path={data.path} is not read by data=stdlib; use data=text or data=slimpajama")
    if not config.name or set(config.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"):
        found.append(f"name={config.name!r} is not a folder name; allowed: letters, digits, '.', '_' and '-'")
    if config.name.startswith("."):
        found.append(f"name={config.name!r} begins with a dot; begin with a letter or a digit")
    device = config.device.name
    if device not in ("auto", "cpu", "mps") and not device.startswith("cuda") and device not in BY_NAME:
        known = ("auto", "cpu", "cuda", "mps", *BY_NAME)
        found.append(f"device={device} is not known; allowed: {', '.join(known)}{_closest(device, known)}")
    schedule = config.schedule
    found += schedule_mistakes(schedule.shape, schedule.warmup, schedule.floor, schedule.decay)
    return found + template(config).mistakes()


def unset_sizes(model: ModelConfig) -> set[str]:
    """The sizes that the plan is free to choose."""
    return {
        size for size in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size") if getattr(model, size) is None
    }


def template(config: Config) -> Shape:
    """The architecture that was asked for; sizes that are still open hold something valid until the plan sets them."""
    values = {leaf.name: getattr(config.model, leaf.name) for leaf in fields(config.model)}
    open_sizes = dict.fromkeys(unset_sizes(config.model), 1)
    if "n_embd" in open_sizes:
        open_sizes["n_embd"] = 64 * max(1, values["n_head"] or 1)
    return Shape(**{**values, **open_sizes})


def as_yaml(config: Any) -> str:
    """The resolved configuration as YAML, with the names of the command line."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _closest(value: Any, allowed: Any) -> str:
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


# -- the command line --------------------------------------------------------------------------------------------------


def launch(task: Callable[[Any], None], script: str) -> None:
    """Run `task(config)` under Hydra with the knobs of `script` (a key of SCRIPTS) from the command line.

    Mistakes of the user's end with status 2, faults of the machine with status 1, each in one line on standard error.
    """
    if any(argument in ("--help", "-h") for argument in sys.argv[1:]):
        print(help_text(script))
        return
    # Before torch is loaded: OpenMP threads that spin for long while they wait make a step up to ten times slower as
    # soon as anything else runs on the machine; sleeping at once costs an idle machine a third. 3000 turns (about 10
    # microseconds) are good at both. Only GNU's runtime, torch's on Linux, reads this.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    with reported():
        _launch(task, script)


@contextmanager
def reported() -> Iterator[None]:
    """Turn the two kinds of failure into one line each on standard error and their exit status."""
    try:
        yield
    except UserError as error:
        for message in error.messages:
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `| head` closed our standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _launch(task: Callable[[Any], None], script: str) -> None:
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    store = ConfigStore.instance()
    for name, schema in SCRIPTS.items():
        store.store(name=f"{name}_schema", node=schema)
    for device in BY_NAME:
        store.store(group="device", name=device, node={"name": device})

    def job(composed: DictConfig) -> None:
        config = OmegaConf.to_object(composed)
        with reported():  # inside Hydra, which would put a report of its own around any exception
            if wrong := mistakes(config):
                raise UserError(*wrong)
            task(config)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing a trace and exiting with status 1
    check_command_line(script)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=script)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from None


def check_command_line(script: str) -> None:
    """Refuse every override that names no knob or has the wrong type, all of them together with the impossible values
    of the others, before Hydra stops at the first."""
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    arguments = get_args_parser().parse_args()
    parser, good, wrong = OverridesParser.create(), [], []
    for text in arguments.overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            wrong.append(f"{text!r} is not KEY=VALUE; quote values with special signs, e.g. 'data.path=\"a=b.txt\"'")
            continue
        key = str(override.key_or_group)
        if key.startswith("hydra"):
            continue
        problem = _override_mistake(SCRIPTS[script], text, override, key)
        if problem:
            wrong.append(problem)
        else:
            good.append(text)
    if wrong and arguments.config_name is None and arguments.config_dir is None:
        raise UserError(*wrong, *_mistakes_of(script, good))
    if wrong:
        raise UserError(*wrong)


def _mistakes_of(script: str, overrides: list[str]) -> list[str]:
    """The impossible values among overrides that are well-formed, so that one run of the command shows them all."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return mistakes(OmegaConf.to_object(compose(script, overrides)))
    except (HydraException, OmegaConfBaseException):
        return []


def _override_mistake(schema: type, text: str, override: Any, key: str) -> str | None:
    """What is wrong with one override, or None."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    names_ = {name: help_text for name, help_text, _ in leaves(schema)}
    values = list(override.value().list) if override.is_choice_sweep() else [override.value()]
    if override.is_add() or override.is_delete() or override.is_force_add():
        return f"{text!r} adds or removes a knob; every knob is there already: write {key}=VALUE"
    if key in groups and key not in names_:
        options = group_options(key)
        unknown = [value for value in values if str(value) not in options]
        if unknown:
            return f"{key}={unknown[0]} is not known; allowed: {', '.join(options)}{_closest(unknown[0], options)}"
        return None
    if key not in names_:
        near = difflib.get_close_matches(key, names_, n=1) or [n for n in names_ if n.endswith(f".{key}")]
        return f"{key} is no knob{f'; did you mean {near[0]}?' if near else ''}; `--help` lists them all"
    for value in values:
        if not _fits(schema, key, value):
            return f"{key}={value} has the wrong type; it is: {names_[key]}"
    return None


def _fits(schema: type, key: str, value: Any) -> bool:
    from hydra.core.override_parser.types import QuotedString
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain = value.text if isinstance(value, QuotedString) else value
    if isinstance(plain, list):
        plain = [entry.text if isinstance(entry, QuotedString) else entry for entry in plain]
    if isinstance(plain, str) and "${" in plain:
        return True  # an interpolation; Hydra resolves and checks it
    try:
        OmegaConf.update(OmegaConf.structured(schema), key, plain)
    except OmegaConfBaseException:
        return False
    return True


def group_options(group: str) -> list[str]:
    """Named choices of a group: the files of conf/GROUP, and for devices the table."""
    files = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return files + ([name for name in BY_NAME if name not in files] if group == "device" else [])


def help_text(script: str) -> str:
    """What `--help` prints: every knob with its default, unit and meaning, and the named choices of each group."""
    schema = SCRIPTS[script]
    program = "train.py" if script == "config" else f"{script}.py"
    lines = [f"{program if len(sys.argv) == 0 else Path(sys.argv[0]).name} KEY=VALUE ...", ""]
    if script == "config":
        lines.append("Named choices (conf/), e.g. data=slimpajama:")
        groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
        lines += [f"  {group + '=':<12}{' | '.join(group_options(group))}" for group in groups]
        lines.append("")
    lines.append("Knobs:")
    for name, meaning, value in leaves(schema()):
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        lines.append(f"  {name}={shown}\n      {meaning}")
    lines += ["", "Sweeps: add -m and commas, e.g. -m model.dropout=0,0.1. More of Hydra: --hydra-help."]
    return "\n".join(lines)
