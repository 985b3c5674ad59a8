"""Every knob of stint: one dataclass tree, so that a typo or a wrong type dies at once.

A knob's comment (its `help`) gives its unit and meaning and is what `--help` prints. null means: chosen by the plan or
by the device. The groups under conf/ only hold named choices of these knobs. Configuration stops at the entry scripts:
the packages receive plain values or small frozen dataclasses.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from budget.laws import LAWS, LOCAL
from budget.planner import ASPECT, MAX_EPOCHS
from model.recipe import AUTO, OPTIMIZERS, OptimSettings
from model.shape import PLAIN, PRESETS, Shape

CONF = Path(__file__).parent / "conf"
SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,5})")  # model.size
# Knobs that do not change what is trained, so a run is found again whatever they are.
NOT_IDENTITY = (
    "output_dir",
    "fresh",
    "output",
    "explain",
    "plan.folder",
    "plan.corpus_tokens",
    "wandb",
    "sweep",
    "checkpoint",
    "data.cache_dir",
    "data.workers",
    "budget.extend_hours",
    "model.size",  # expanded into what it stands for
)

# Shares of a budget at which successive halving (Jamieson & Talwalkar 2016) keeps the better half of a sweep's jobs.
HALVING_RUNGS = (0.25, 0.5)


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
    """Where to compute."""

    name: str = knob("auto", "auto | cpu | cuda | mps; plan.py also takes a name of the table, e.g. a100")
    threads: int | None = knob(None, "CPU threads; null: every core this process may use")
    precision: str = knob(
        "auto", "auto (GPU: bfloat16, before Ampere float16; else float32) | float32 | bfloat16 | float16"
    )


@dataclass
class TrainingDeviceConfig(DeviceConfig):
    """And what matters to training alone."""

    compile: str = knob(
        "auto",
        "torch.compile: auto (what the budget is long enough to earn back) | on | off | regional (block by block: cheaper)",
    )
    peak_flops: float | None = knob(None, "FLOP/s that MFU is measured against; null: the table's, else measured")


LARGER = "from 1e14 FLOPs on, or where only steps are given"


@dataclass
class ModelConfig:
    size: str | None = knob(None, "n_layer and n_embd in one, e.g. 12x768, so that a sweep can change both together")
    n_layer: int | None = knob(None, "blocks; null: planned")
    n_head: int | None = knob(None, "attention heads; null: one per 64 of width (128 from width 1024)")
    n_embd: int | None = knob(None, "width; null: planned")
    block_size: int | None = knob(
        None, "context, tokens; null: 64 below 1e14 FLOPs (bytes: 256), 256 below 1e17, 512 below 1e19, else 1024"
    )
    vocab_size: int | None = knob(None, "rows of the vocabulary matrix; null: the tokenizer's, padded to 64")
    ffn_hidden: int | None = knob(None, "feed-forward width; null: 4 n_embd, 8/3 n_embd for swiglu")
    dropout: float | None = knob(
        None, "share of activations dropped in training, 0..1; null: 0, and 0.1 beyond four epochs"
    )
    bias: bool = knob(False, "biases in linear layers and layer norms")
    tie: bool = knob(False, "one matrix for embedding and output")
    position: str = knob("rotary", "learned | rotary")
    norm: str | None = knob(None, f"layernorm | rmsnorm; null: rmsnorm {LARGER}, else layernorm")
    activation: str | None = knob(None, f"gelu | relu2 | swiglu; null: relu2 {LARGER}, else gelu")
    qk_norm: bool | None = knob(None, f"normalise queries and keys; null: {LARGER}")
    initialisation: str | None = knob(
        None, f"gpt2 | zero (as gpt2, residual output projections start at 0); null: zero {LARGER}, else gpt2"
    )
    rope_theta: float = knob(10000.0, "base of the rotary frequencies")
    embed_norm: bool = knob(True, "normalise embeddings before the first block")
    x0_shortcut: bool | None = knob(None, f"give every block the embedding again, in learned shares; null: {LARGER}")
    value_residual: bool = knob(False, "mix the first block's values into those of every later one, in learned shares")
    value_embeddings: bool = knob(False, "add an embedding of the token to the values of every second block")
    bigram_rows: int | None = knob(
        None,
        "rows of a hashed embedding of each token with the one before; null: 65536 below 1e17 FLOPs (from 2e12 to 1e14 up to"
        " 262144, by the width), else 0",
    )
    softcap: float = knob(0.0, "bound of the logits, by tanh; 0: none")
    document_mask: bool = knob(False, "attention sees nothing of the documents before a token's own")


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
    name: str = knob("auto", "auto | adamw | muon (for the matrices in the blocks, AdamW for the rest)")
    learning_rate: float | None = knob(None, "peak learning rate; null: planned")
    weight_decay: float | None = knob(None, "decoupled weight decay, on matrices only; null: planned")
    beta1: float = knob(0.9, "decay of the first moment")
    beta2: float | None = knob(None, "decay of the second moment; null: 0.95 from 2^18 tokens a batch, else 0.99")
    eps: float = knob(1e-8, "added to the denominator of Adam")
    embedding_rate: float = knob(1.0, "learning rate of embeddings, as a multiple of optim.learning_rate")
    table_rate: float = knob(
        0.3, "learning rate of tables for bigrams and values, as a multiple of optim.learning_rate"
    )
    head_rate: float = knob(1.0, "learning rate of an untied vocabulary matrix, as a multiple of optim.learning_rate")
    vector_rate: float = knob(1.0, "learning rate of norms, biases and scalars, as a multiple of optim.learning_rate")
    momentum: float = knob(0.95, "muon: decay of the momentum, risen to over the first 8 % of the budget")
    normuon: bool = knob(False, "muon: even out the sizes of the rows' updates")
    cautious: bool = knob(False, "muon: decay weights only where that points the way of the update")
    grad_clip: float = knob(1.0, "largest norm of the gradient, tables left out; 0: no clipping")
    batch_tokens: int | None = knob(None, "tokens per optimizer step, a multiple of block_size; null: planned")
    micro_batch: int | None = knob(
        None, "sequences per forward pass; changes speed and memory, not the result; null: what fits"
    )


@dataclass
class ScheduleConfig:
    shape: str = knob("linear", "cosine | linear | wsd | constant, over the share of the budget spent")
    warmup: float | None = knob(
        None, "share of the budget over which the learning rate rises, 0..1; null: as many tokens as parameters"
    )
    floor: float = knob(0.0, "learning rate at the very end, as a share of the peak")
    decay: float = knob(0.2, "wsd: share of the budget over which it falls at the end")


@dataclass
class EvalConfig:
    tokens: int = knob(262144, "validation tokens of the final evaluation; halved until it fits eval.max_fraction")
    every: float = knob(0.1, "share of the budget between interim evaluations; 0: none")
    interim_tokens: int = knob(16384, "validation tokens of an interim evaluation")
    max_fraction: float = knob(0.05, "largest share of the hours for the final evaluation, and for all interim ones")


@dataclass
class PlanConfig:
    law_file: str = knob("outputs/law.json", "law=local: the law of your own runs, from python -m budget.refit")
    aspect_min: float = knob(
        ASPECT[0], "least n_embd / n_layer of the shapes to choose from; with both as they are, 16 up to a width of 256"
    )
    aspect_max: float = knob(
        ASPECT[1],
        "largest n_embd / n_layer of the shapes to choose from; with both as they are, 128 up to a width of 256",
    )
    max_epochs: float | None = knob(
        None, f"refuse a plan that repeats the corpus more often; null: {MAX_EPOCHS:g}, for data=stdlib no limit"
    )
    corpus_tokens: float | None = knob(None, "plan.py: training tokens of the corpus; null: as many as wanted")
    folder: str | None = knob(None, "plan.py: write plan.json and plan.png into this folder; null: write nothing")


@dataclass
class CheckpointConfig:
    max_fraction: float = knob(0.02, "largest share of the time that saving may take; the interval follows from it")
    every_s: float | None = knob(
        None, "seconds between checkpoints; null: 2 % of the hours, from 2 to 600, and 60 without hours"
    )


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
    group: str | None = knob(None, "wandb group; null: for the jobs of a sweep its name, else none")
    tags: list[str] = names([], "wandb tags; the jobs of a sweep get its name and what each was told as well")
    timeout_s: float = knob(8.0, "longest wait for wandb at the start and at the end, seconds")


@dataclass
class SweepConfig:
    metric: str = knob("loss", "what jobs are judged by: loss | bits_per_byte | perplexity | accuracy")
    on_error: str = knob("continue", "when a job has failed: continue | stop")
    hours: float | None = knob(
        None,
        "device hours of the whole sweep, from which all jobs draw; what is left buys a longer run of the best one",
    )
    prune: str = knob(
        "none", "stop jobs that fall behind: none | median (of the others) | halving (the worse half, twice)"
    )
    prune_from: float = knob(0.25, "share of its budget before which no job is stopped for falling behind")
    known: str | None = knob(None, "what is known about the swept knobs, shown beside what the sweep found")
    retries: int = knob(1, "how often a job that was killed or failed is started again")


@dataclass
class Config:
    """train.py and plan.py."""

    budget: BudgetConfig = field(default_factory=BudgetConfig)
    device: TrainingDeviceConfig = field(default_factory=TrainingDeviceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    name: str = knob("run", "first part of the run's folder name; the second is a hash of the knobs that matter")
    seed: int = knob(1337, "seed of initialisation, data order, dropout and sampling")
    output_dir: str = knob("outputs", "folder of runs")
    fresh: bool = knob(False, "true: set an existing run of the same name aside and start again")
    law: str = knob("chinchilla-table3", f"scaling law of the plan: {' | '.join(LAWS)} | local (plan.law_file)")
    mfu: float | None = knob(None, "share of the device's peak to plan with, 0..1; null: measured, else the table's")
    probe: bool | None = knob(None, "measure candidate shapes on this device; null: train.py does, plan.py does not")
    explain: bool = knob(False, "plan.py: print how every number of the plan comes about")
    output: str = knob("text", "text | json: one JSON object on standard output, all else on standard error")


@dataclass
class EvaluateDataConfig:
    path: str | None = knob(None, "file, folder or glob of any text; needed")
    text_key: str = knob("text", "key of the text in .jsonl and .parquet; dots go into nested objects")
    bad_documents: str = knob("refuse", "a line that is not UTF-8, not JSON or has no text: refuse | skip (and count)")


@dataclass
class EvaluateConfig:
    """evaluate.py."""

    checkpoint: str | None = knob(None, "a run's folder, e.g. outputs/NAME; needed")
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    tokens: int | None = knob(None, "score only this many tokens, from the start; null: all of them")
    micro_batch: int = knob(16, "sequences per forward pass; changes speed and memory, not the result")
    output: str = knob("text", "text | json: one JSON object on standard output")


@dataclass
class SampleConfig:
    """sample.py."""

    checkpoint: str | None = knob(None, "a run's folder, e.g. outputs/NAME; needed")
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
    "device.precision": ("auto", "float32", "bfloat16", "float16"),
    "device.compile": ("auto", "on", "off", "regional"),
    "data.source": ("stdlib", "slimpajama", "text"),
    "data.bad_documents": ("refuse", "skip"),
    "optim.name": (AUTO, *OPTIMIZERS),
    "wandb.mode": ("online", "offline", "disabled"),
    "sweep.metric": ("loss", "bits_per_byte", "perplexity", "accuracy"),
    "sweep.on_error": ("continue", "stop"),
    "sweep.prune": ("none", "median", "halving"),
    "law": (*LAWS, LOCAL),
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
    "device.peak_flops": (1e6, 1e20, True, True),
    "data.validation_fraction": (0, 0.5, False, True),
    "data.max_bytes": (1, 1e18, True, True),
    "data.workers": (1, 4096, True, True),
    "optim.learning_rate": (1e-12, 100, True, True),
    "optim.weight_decay": (0, 100, True, True),
    "optim.beta1": (0, 1, True, False),
    "optim.beta2": (0, 1, True, False),
    "optim.eps": (1e-30, 1, True, True),  # float32: below, 0 / 0 for what had no gradient
    "optim.embedding_rate": (0, 1e4, True, True),
    "optim.table_rate": (0, 1e4, True, True),
    "optim.head_rate": (0, 1e4, True, True),
    "optim.vector_rate": (0, 1e4, True, True),
    "optim.momentum": (0, 1, True, False),
    "optim.grad_clip": (0, 1e9, True, True),
    "optim.batch_tokens": (1, 1e12, True, True),
    "optim.micro_batch": (1, 1e9, True, True),
    "eval.tokens": (1, 1e15, True, True),
    "eval.every": (0, 1, True, True),
    "eval.interim_tokens": (1, 1e15, True, True),
    "eval.max_fraction": (0, 1, False, True),
    "plan.aspect_min": (0.1, 1e6, True, True),
    "plan.aspect_max": (0.1, 1e6, True, True),
    "plan.max_epochs": (0, 1e9, False, True),
    "plan.corpus_tokens": (1, 1e15, True, True),
    "checkpoint.max_fraction": (0, 1, False, True),
    "checkpoint.every_s": (0, 1e9, False, True),
    "samples.tokens": (0, 1e6, True, True),
    "samples.temperature": (0, 100, True, True),
    "samples.top_k": (1, 1e9, True, True),
    "wandb.timeout_s": (0, 60, False, True),
    "sweep.retries": (0, 100, True, True),
    "sweep.hours": (0, 1e6, False, True),
    "sweep.prune_from": (0, 0.9, False, True),
    "mfu": (1e-6, 1, True, True),
    "samples": (1, 1e6, True, True),
    "seed": (0, 2**31 - 1, True, True),
    "tokens": (1, 1e15, True, True),
    "micro_batch": (1, 1e9, True, True),
    "temperature": (0, 100, True, True),
    "top_k": (1, 1e9, True, True),
    "top_p": (0, 1, False, True),
    "repetition_penalty": (0.01, 100, True, True),
}

PATHS = ("data.path", "data.cache_dir", "data.repo", "output_dir", "plan.folder", "plan.law_file", "checkpoint")


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


def expand(config: Config) -> Config:
    """The configuration with model.size written as the two knobs it stands for, so that both ways are the same run."""
    found = SIZE.fullmatch(config.model.size or "")
    if not found or config.model.n_layer is not None or config.model.n_embd is not None:
        return config
    return replace(config, model=replace(config.model, size=None, n_layer=int(found[1]), n_embd=int(found[2])))


def identity(config: Config) -> dict[str, Any]:
    """The knobs that decide what is trained; their hash names the run's folder."""
    knobs = asdict(config)
    for dotted in NOT_IDENTITY:
        *groups, leaf = dotted.split(".")
        node = knobs
        for group in groups:
            node = node[group]
        del node[leaf]
    if config.data.path is not None:
        knobs["data"]["path"] = str(Path(config.data.path).resolve())
    return knobs


def unset_sizes(model: ModelConfig) -> set[str]:
    """The sizes that the plan is free to choose."""
    return {
        size for size in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size") if getattr(model, size) is None
    }


def template(config: Config) -> Shape:
    """The architecture that was asked for; what is still open holds something valid until the plan sets it. What
    end-of-text is, `with_eot` adds."""
    values = {leaf.name: getattr(config.model, leaf.name) for leaf in fields(Shape) if leaf.name != "eot"}
    open_sizes: dict[str, Any] = dict.fromkeys(unset_sizes(config.model), 1)
    values["dropout"] = values["dropout"] or 0.0
    values["bigram_rows"] = values["bigram_rows"] or 0
    values |= {knob: PRESETS["modern"][knob] for knob in open_block(config)}
    if "n_embd" in open_sizes:
        open_sizes["n_embd"] = 64 * max(1, values["n_head"] or 1)
    return Shape(**{**values, **open_sizes})


def open_block(config: Config) -> list[str]:
    """The knobs of a block that the compute is to decide."""
    return [knob for knob in PLAIN if getattr(config.model, knob) is None]


def with_eot(config: Config, shape: Shape, eot: int) -> Shape:
    """The shape with the id that separates documents, where they are to be kept apart."""
    return replace(shape, eot=eot) if config.model.document_mask else shape


def optim_settings(config: Config) -> OptimSettings:
    """The optimizer that was asked for."""
    return OptimSettings(**{leaf.name: getattr(config.optim, leaf.name) for leaf in fields(OptimSettings)})


def closest(value: Any, allowed: Any) -> str:
    """The end of an error message: "; did you mean X?" where one of `allowed` is like `value`, else nothing."""
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
