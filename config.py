"""Every option of stint: one dataclass tree, so that a typo or a wrong type is refused at once.

An option is declared once, with its default, its meaning, the values it may take and whether it decides what is trained.
null means: chosen by the plan or by the device. The groups under conf/ only hold named choices of these options.
Configuration stops at the entry scripts: the packages receive plain values or small frozen dataclasses.

What model/config.py and model/optim/lr_schedule.py check themselves (sizes, blocks, shapes of the schedule) is not repeated here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from budget.laws.published import LAWS, LOCAL
from budget.planner.plan import ASPECT, MAX_EPOCHS
from model.config import PLAIN, PRESETS, Shape
from model.optim.settings import AUTO, OPTIMIZERS, OptimSettings

CONF = Path(__file__).parent / "conf"

# Shares of a budget at which successive halving (Jamieson & Talwalkar 2016) keeps the better half of a sweep's jobs.
HALVING_RUNGS = (0.25, 0.5)


@dataclass(frozen=True)
class Option:
    """What one option means and which values it may take; null is allowed wherever its type allows it.

    `low` and `high` are the ends of its range, `exclusive` the end that is not allowed itself ("low" or "high"). `path`: it
    names a file or a folder. `identity`: it decides what is trained, so it is part of the hash that names a run's folder.
    `added_later`: see `identity`. `common`: one of those that most people set first; `--help` begins with them.
    """

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    exclusive: str = ""
    path: bool = False
    identity: bool = True
    added_later: bool = False
    common: bool = False

    @property
    def range(self) -> str:
        """The range as an interval, e.g. (0, 1]; empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        begin, end = "(" if self.exclusive == "low" else "[", ")" if self.exclusive == "high" else "]"
        return f"{begin}{self.low:g}, {self.high:g}{end}"

    def in_range(self, value: float) -> bool:
        """Whether a number is allowed; NaN never is."""
        if self.low is None or self.high is None:
            return True
        low, high = self.exclusive != "low" and value == self.low, self.exclusive != "high" and value == self.high
        return self.low < value < self.high or low or high


def option(default: Any, help: str, **rules: Any) -> Any:
    """A leaf of the tree: its default, its unit and meaning, and the rules of `Option`."""
    metadata = {"option": Option(help, **rules)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(schema: type, identity: bool = True) -> Any:
    """A group of options. `identity`: whether any of them decides what is trained."""
    return field(default_factory=schema, metadata={"identity": identity})


@dataclass
class BudgetConfig:
    """What the run may spend; the first limit that is reached ends it."""

    hours: float | None = option(
        None,
        "wall clock of the whole process, hours; null: no such limit",
        low=0,
        high=1e6,
        exclusive="low",
        common=True,
    )
    flops: float | None = option(
        None,
        "training FLOPs (6N + 12 n_layer n_embd block_size a token); null: no such limit",
        low=0,
        high=1e30,
        exclusive="low",
    )
    tokens: float | None = option(None, "training tokens; null: no such limit", low=0, high=1e18, exclusive="low")
    steps: int | None = option(None, "optimizer steps; null: no such limit", low=1, high=1e12)
    counts: str = option(
        "all",
        "what the hours count: all (from process start to exit) | training (steps only)",
        choices=("all", "training"),
    )
    extend_hours: float = option(
        0.0,
        "hours on top of budget.hours for a run that exists already; recorded in its ledger",
        low=0,
        high=1e6,
        identity=False,
    )


@dataclass
class DeviceConfig:
    """What to compute on."""

    name: str = option("auto", "auto | cpu | cuda | mps; plan.py also takes a name of the table, e.g. a100")
    threads: int | None = option(None, "CPU threads; null: every core this process may use", low=1, high=4096)
    precision: str = option(
        "auto",
        "auto (GPU: bfloat16, before Ampere float16; else float32) | float32 | bfloat16 | float16",
        choices=("auto", "float32", "bfloat16", "float16"),
    )


@dataclass
class TrainingDeviceConfig(DeviceConfig):
    """What to compute on, in which precision, and whether to compile."""

    compile: str = option(
        "auto",
        "torch.compile: auto (what the budget is long enough to earn back) | on | off | regional (block by block: cheaper)",
        choices=("auto", "on", "off", "regional"),
    )
    peak_flops: float | None = option(
        None, "FLOP/s that MFU is measured against; null: the table's, else measured", low=1e6, high=1e20
    )


LARGER = "from 1e14 FLOPs on, or where only steps are given"


@dataclass
class ModelConfig:
    """Sizes and architecture; the plan chooses what is left at null."""

    n_layer: int | None = option(None, "blocks; null: planned", common=True)
    n_head: int | None = option(None, "attention heads; null: one per 64 of width (128 from width 1024)")
    n_embd: int | None = option(None, "width; null: planned", common=True)
    block_size: int | None = option(
        None, "context, tokens; null: 64 below 1e14 FLOPs (bytes: 256), 256 below 1e17, 512 below 1e19, else 1024"
    )
    vocab_size: int | None = option(None, "rows of the vocabulary matrix; null: the tokenizer's, padded to 64")
    ffn_hidden: int | None = option(None, "feed-forward width; null: 4 n_embd, 8/3 n_embd for swiglu")
    dropout: float | None = option(
        None, "share of activations dropped in training, 0..1; null: 0, and 0.1 beyond four epochs"
    )
    bias: bool = option(False, "biases in linear layers and layer norms")
    tie: bool = option(False, "one matrix for embedding and output")
    position: str = option("rotary", "learned | rotary")
    norm: str | None = option(None, f"layernorm | rmsnorm; null: rmsnorm {LARGER}, else layernorm")
    activation: str | None = option(None, f"gelu | relu2 | swiglu; null: relu2 {LARGER}, else gelu")
    qk_norm: bool | None = option(None, f"normalise queries and keys; null: {LARGER}")
    initialisation: str | None = option(
        None, f"gpt2 | zero (as gpt2, residual output projections start at 0); null: zero {LARGER}, else gpt2"
    )
    rope_theta: float = option(10000.0, "base of the rotary frequencies")
    embed_norm: bool = option(True, "normalise embeddings before the first block")
    x0_shortcut: bool | None = option(None, f"give every block the embedding again, in learned shares; null: {LARGER}")
    value_embeddings: bool = option(False, "add an embedding of the token to the values of every second block")
    bigram_rows: int | None = option(
        None,
        "rows of a hashed embedding of each token with the one before; null: 65536 below 1e17 FLOPs (from 2e12 to 1e14 up to"
        " 262144, by the width), else 0",
    )
    softcap: float = option(0.0, "bound of the logits, by tanh; 0: none")
    document_mask: bool = option(False, "attention sees nothing of the documents before a token's own")


@dataclass
class DataConfig:
    """The corpus, its tokenizer and its validation split."""

    source: str = option("stdlib", "stdlib | slimpajama | text", choices=("stdlib", "slimpajama", "text"))
    path: str | None = option(
        None,
        "file, folder or glob; for slimpajama a folder in its own layout; null: built in or Hub",
        path=True,
        common=True,
    )
    text_key: str = option("text", "key of the text in .jsonl and .parquet; dots go into nested objects")
    tokenizer: str = option(
        "bpe-4096", "gpt2 | any tiktoken encoding | bytes | bpe-N (trained on the training split)", common=True
    )
    validation_fraction: float = option(
        0.01,
        "share of documents kept for validation where the corpus has no such split",
        low=0,
        high=0.5,
        exclusive="low",
    )
    repo: str | None = option(None, "data set on the Hub, owner/name", path=True)
    revision: str | None = option(None, "commit of that data set; null: its newest")
    fallbacks: list[str] = option([], "repo[@revision] to try, in order, where data.repo is gone")
    max_bytes: int | None = option(
        None, "stop preparing after this many bytes of text; null: all of it", low=1, high=1e18
    )
    bad_documents: str = option(
        "refuse",
        "a line that is not UTF-8, not JSON or has no text: refuse | skip (and count)",
        choices=("refuse", "skip"),
    )
    cache_dir: str = option("prepared", "folder of prepared corpora", path=True, identity=False)
    workers: int | None = option(
        None, "threads that tokenise; null: every core this process may use", low=1, high=4096, identity=False
    )


@dataclass
class OptimConfig:
    """Optimizer, learning rate and batch; the plan chooses what is left at null."""

    name: str = option(
        "auto", "auto | adamw | muon (for the matrices in the blocks, AdamW for the rest)", choices=(AUTO, *OPTIMIZERS)
    )
    learning_rate: float | None = option(None, "peak learning rate; null: planned", low=1e-12, high=100, common=True)
    weight_decay: float | None = option(
        None, "decoupled weight decay, on matrices only; null: planned", low=0, high=100
    )
    beta1: float = option(0.9, "decay of the first moment", low=0, high=1, exclusive="high")
    beta2: float | None = option(
        None,
        "decay of the second moment; null: 0.95 from 2^18 tokens a batch, else 0.99",
        low=0,
        high=1,
        exclusive="high",
    )
    # float32: with less, 0 / 0 for what had no gradient
    eps: float = option(1e-8, "added to the denominator of Adam", low=1e-30, high=1)
    table_rate: float = option(
        0.3, "learning rate of tables for bigrams and values, as a multiple of optim.learning_rate", low=0, high=1e4
    )
    momentum: float = option(
        0.95, "muon: decay of the momentum, risen to over the first 8 % of the budget", low=0, high=1, exclusive="high"
    )
    normuon: bool = option(False, "muon: even out the sizes of the rows' updates")
    cautious: bool = option(False, "muon: decay weights only where that points the way of the update")
    grad_clip: float = option(1.0, "largest norm of the gradient, tables left out; 0: no clipping", low=0, high=1e9)
    batch_tokens: int | None = option(
        None, "tokens per optimizer step, a multiple of block_size; null: planned", low=1, high=1e12, common=True
    )
    micro_batch: int | None = option(
        None, "sequences per forward pass; changes speed and memory, not the result; null: what fits", low=1, high=1e9
    )


@dataclass
class ScheduleConfig:
    """The learning rate over the share of the budget that is spent."""

    shape: str = option("linear", "cosine | linear | wsd | constant, over the share of the budget spent")
    warmup: float | None = option(
        None, "share of the budget over which the learning rate rises, 0..1; null: as many tokens as parameters"
    )
    floor: float = option(0.0, "learning rate at the very end, as a share of the peak")
    decay: float = option(0.2, "wsd: share of the budget over which it falls at the end")


@dataclass
class EvalConfig:
    """How often and on how much text the model is evaluated."""

    tokens: int = option(
        262144, "validation tokens of the final evaluation; halved until it fits eval.max_fraction", low=1, high=1e15
    )
    every: float = option(0.1, "share of the budget between interim evaluations; 0: none", low=0, high=1)
    interim_tokens: int = option(16384, "validation tokens of an interim evaluation", low=1, high=1e15)
    max_fraction: float = option(
        0.05,
        "largest share of the hours for the final evaluation, and for all interim ones",
        low=0,
        high=1,
        exclusive="low",
    )


@dataclass
class PlanConfig:
    """Limits of the plan, and what plan.py writes."""

    law_file: str = option(
        "outputs/law.json", "law=local: the law of your own runs, from python -m budget.laws.refit", path=True
    )
    aspect_min: float = option(
        ASPECT[0],
        "least n_embd / n_layer of the shapes to choose from; with both as they are, 16 up to a width of 256",
        low=0.1,
        high=1e6,
    )
    aspect_max: float = option(
        ASPECT[1],
        "largest n_embd / n_layer of the shapes to choose from; with both as they are, 128 up to a width of 256",
        low=0.1,
        high=1e6,
    )
    max_epochs: float | None = option(
        None,
        f"refuse a plan that repeats the corpus more often; null: {MAX_EPOCHS:g}, for data=stdlib no limit",
        low=0,
        high=1e9,
        exclusive="low",
    )
    corpus_tokens: float | None = option(
        None, "plan.py: training tokens of the corpus; null: as many as wanted", low=1, high=1e15, identity=False
    )
    folder: str | None = option(
        None, "plan.py: write plan.json and plan.png into this folder; null: write nothing", path=True, identity=False
    )


@dataclass
class CheckpointConfig:
    """How often the run is saved."""

    max_fraction: float = option(
        0.02,
        "largest share of the time that saving may take; the interval follows from it",
        low=0,
        high=1,
        exclusive="low",
    )
    every_s: float | None = option(
        None,
        "seconds between checkpoints; null: 2 % of the hours, from 2 to 600, and 60 without hours",
        low=0,
        high=1e9,
        exclusive="low",
    )


@dataclass
class WandbConfig:
    """Logging to Weights & Biases; off unless asked for."""

    mode: str = option(
        "disabled", "online | offline | disabled", choices=("online", "offline", "disabled"), common=True
    )
    project: str = option("stint", "wandb project")
    entity: str | None = option(None, "wandb team or user; null: your default")
    group: str | None = option(None, "wandb group; null: for the jobs of a sweep its name, else none")
    tags: list[str] = option([], "wandb tags; the jobs of a sweep get its name and what each was told as well")
    timeout_s: float = option(
        8.0, "longest wait for wandb at the start and at the end, seconds", low=0, high=60, exclusive="low"
    )


@dataclass
class SweepConfig:
    """How the jobs of a sweep are compared, stopped and started again."""

    metric: str = option(
        "loss",
        "what jobs are judged by: loss | bits_per_byte | perplexity | accuracy",
        choices=("loss", "bits_per_byte", "perplexity", "accuracy"),
    )
    on_error: str = option("continue", "when a job has failed: continue | stop", choices=("continue", "stop"))
    hours: float | None = option(
        None,
        "device hours of the whole sweep, from which all jobs draw; what is left buys a longer run of the best one",
        low=0,
        high=1e6,
        exclusive="low",
    )
    prune: str = option(
        "none",
        "stop jobs that fall behind: none | median (of the others) | halving (the worse half, twice)",
        choices=("none", "median", "halving"),
    )
    prune_from: float = option(
        0.25, "share of its budget before which no job is stopped for falling behind", low=0, high=0.9, exclusive="low"
    )
    retries: int = option(1, "how often a job that was killed or failed is started again", low=0, high=100)


@dataclass
class Config:
    """Spend a compute budget on the best language model that it buys; plan.py tells beforehand which one that is.

    PROGRAM budget.hours=0.05
    PROGRAM budget.hours=3 data=slimpajama model=llama
    PROGRAM -m budget.hours=0.05 model.dropout=0,0.1
    """

    budget: BudgetConfig = group(BudgetConfig)
    device: TrainingDeviceConfig = group(TrainingDeviceConfig)
    model: ModelConfig = group(ModelConfig)
    data: DataConfig = group(DataConfig)
    optim: OptimConfig = group(OptimConfig)
    schedule: ScheduleConfig = group(ScheduleConfig)
    eval: EvalConfig = group(EvalConfig)
    checkpoint: CheckpointConfig = group(CheckpointConfig, identity=False)
    wandb: WandbConfig = group(WandbConfig, identity=False)
    plan: PlanConfig = group(PlanConfig)
    sweep: SweepConfig = group(SweepConfig, identity=False)
    name: str = option(
        "run", "first part of the run's folder name; the second is a hash of the options that matter", common=True
    )
    seed: int = option(
        1337, "seed of initialisation, data order, dropout and sampling", low=0, high=2**31 - 1, common=True
    )
    output_dir: str = option("outputs", "folder of runs", path=True, identity=False)
    fresh: bool = option(False, "true: set an existing run of the same name aside and start again", identity=False)
    law: str = option(
        "chinchilla-table3",
        f"scaling law of the plan: {' | '.join(LAWS)} | local (plan.law_file)",
        choices=(*LAWS, LOCAL),
    )
    mfu: float | None = option(
        None, "share of the device's peak to plan with, 0..1; null: measured, else the table's", low=1e-6, high=1
    )
    probe: bool | None = option(None, "measure candidate shapes on this device; null: train.py does, plan.py does not")
    explain: bool = option(False, "plan.py: print how every number of the plan comes about", identity=False)
    output: str = option(
        "text",
        "text | json: one JSON object on standard output, all else on standard error",
        choices=("text", "json"),
        identity=False,
    )


@dataclass
class EvaluateDataConfig:
    """The text to score."""

    path: str | None = option(None, "file, folder or glob of any text; needed", path=True)
    text_key: str = option("text", "key of the text in .jsonl and .parquet; dots go into nested objects")
    bad_documents: str = option(
        "refuse",
        "a line that is not UTF-8, not JSON or has no text: refuse | skip (and count)",
        choices=("refuse", "skip"),
    )


@dataclass
class EvaluateConfig:
    """Score text with a finished model.

    PROGRAM checkpoint=outputs/NAME data.path=my.jsonl.zst
    PROGRAM checkpoint=outputs/NAME data.path=texts/ output=json
    """

    checkpoint: str | None = option(None, "a run's folder, e.g. outputs/NAME; needed", path=True)
    data: EvaluateDataConfig = group(EvaluateDataConfig)
    device: DeviceConfig = group(DeviceConfig)
    tokens: int | None = option(
        None, "score only this many tokens, from the start; null: all of them", low=1, high=1e15
    )
    micro_batch: int = option(
        16, "sequences per forward pass; changes speed and memory, not the result", low=1, high=1e9
    )
    output: str = option("text", "text | json: one JSON object on standard output", choices=("text", "json"))


@dataclass
class SampleConfig:
    """Let a finished model continue prompts.

    PROGRAM checkpoint=outputs/NAME
    PROGRAM checkpoint=outputs/NAME prompts='["def ","The "]' samples=3 temperature=0.7
    """

    checkpoint: str | None = option(None, "a run's folder, e.g. outputs/NAME; needed", path=True)
    prompts: list[str] = option([""], 'prompts to continue, e.g. prompts=\'["def ","The "]\'; empty: a new document')
    device: DeviceConfig = group(DeviceConfig)
    samples: int = option(1, "continuations of each prompt", low=1, high=1e6)
    tokens: int = option(200, "longest continuation, tokens; it ends earlier at the end of the text", low=1, high=1e15)
    temperature: float = option(0.8, "sampling temperature; 0: the likeliest token", low=0, high=100)
    top_k: int | None = option(None, "sample among this many likeliest tokens; null: all", low=1, high=1e9)
    top_p: float | None = option(
        None, "sample among the likeliest tokens that hold this probability; null: all", low=0, high=1, exclusive="low"
    )
    repetition_penalty: float = option(
        1.0, "divides the scores of tokens that are there already; 1: off", low=0.01, high=100
    )
    seed: int = option(1337, "seed of the sampling", low=0, high=2**31 - 1)
    output: str = option("text", "text | json: one JSON object on standard output", choices=("text", "json"))


SCRIPTS: dict[str, type] = {"config": Config, "evaluate": EvaluateConfig, "sample": SampleConfig}


@dataclass(frozen=True)
class Removed:
    """An option of earlier versions: the value it had unless it was set, and what to do instead. `identity` as in `Option`."""

    value: Any
    advice: str
    identity: bool = True


OWN_RATE = "all but tables learn at optim.learning_rate; optim.table_rate is the rate of tables"
OWN_SAMPLES = "the report shows three short samples; sample.py writes any others"
REMOVED_OPTIONS = {
    "model.size": Removed(None, "set model.n_layer and model.n_embd", identity=False),
    "model.value_residual": Removed(False, "model.value_embeddings=true is the nearest to it"),
    "optim.embedding_rate": Removed(1.0, OWN_RATE),
    "optim.head_rate": Removed(1.0, OWN_RATE),
    "optim.vector_rate": Removed(1.0, OWN_RATE),
    "samples.prompts": Removed(["def ", "import ", "The "], OWN_SAMPLES),
    "samples.tokens": Removed(64, OWN_SAMPLES),
    "samples.temperature": Removed(0.8, OWN_SAMPLES),
    "samples.top_k": Removed(50, OWN_SAMPLES),
    "sweep.known": Removed(None, "write it into a comment of the sweep's file", identity=False),
}


def removed_line(name: str) -> str | None:
    """The error message for an option of earlier versions, or for a group of which nothing is left."""
    gone = REMOVED_OPTIONS.get(name)
    if name not in (leaf.name for leaf in fields(Config)):
        gone = gone or next((each for key, each in REMOVED_OPTIONS.items() if key.startswith(f"{name}.")), None)
    return None if gone is None else f"{name} was removed; leave it out: {gone.advice}"


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Option, Any]]:
    """(dotted name, option, value) of every option; `tree` is a config dataclass or an instance of one."""
    hints = get_type_hints(tree if isinstance(tree, type) else type(tree))
    for leaf in fields(tree):
        kind = hints[leaf.name]
        if is_dataclass(kind):
            yield from leaves(kind if isinstance(tree, type) else getattr(tree, leaf.name), f"{prefix}{leaf.name}.")
        else:
            value = None if isinstance(tree, type) else getattr(tree, leaf.name)
            yield f"{prefix}{leaf.name}", leaf.metadata["option"], value


def _outside_identity() -> Iterator[str]:
    """Names of groups and options that do not decide what is trained."""
    outside = [leaf.name for leaf in fields(Config) if not leaf.metadata.get("identity", True)]
    yield from outside
    yield from (
        name for name, rules, _ in leaves(Config) if not rules.identity and name.partition(".")[0] not in outside
    )


# A run is found again whatever these are.
NOT_IDENTITY = tuple(_outside_identity())


def identity(config: Config) -> dict[str, Any]:
    """The options that decide what is trained; their hash names the run's folder.

    The same command must lead to the same hash in every later version, as users' folders are named by it. So a removed
    option still counts with the value it had, and one that is `added_later` counts only where it is not at its default.
    """
    content = asdict(config)
    for name in NOT_IDENTITY:
        node, leaf = _node(content, name)
        del node[leaf]
    defaults = {name: value for name, _, value in leaves(type(config)())}
    for name, rules, value in leaves(config):
        if rules.added_later and rules.identity and value == defaults[name]:
            node, leaf = _node(content, name)
            del node[leaf]
    for name, gone in REMOVED_OPTIONS.items():
        if gone.identity:
            node, leaf = _node(content, name)
            node[leaf] = gone.value
    if config.data.path is not None:
        content["data"]["path"] = str(Path(config.data.path).resolve())
    return content


def _node(content: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a dotted name, and the last part of the name."""
    *groups, leaf = name.split(".")
    for part in groups:
        content = content.setdefault(part, {})
    return content, leaf


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
    values |= {name: PRESETS["modern"][name] for name in open_block(config)}
    if "n_embd" in open_sizes:
        open_sizes["n_embd"] = 64 * max(1, values["n_head"] or 1)
    return Shape(**{**values, **open_sizes})


def open_block(config: Config) -> list[str]:
    """The options of a block that the compute is to decide."""
    return [name for name in PLAIN if getattr(config.model, name) is None]


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
