"""Every option of the command line, declared once as a tree of dataclasses.

A declaration holds the default, the help text, the allowed values and whether the option affects training. The YAML files
under conf/ are named sets of values for these options. Only the entry scripts, training/, cli/ and sweeps/ see the
configuration; other packages get plain values or small frozen dataclasses.

Model sizes and schedules are validated by model/config.py and model/optim/lr_schedule.py, not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from budget.extension import UNITS, Extension, parse_extension
from budget.laws.published import LAWS, LOCAL
from budget.planner.plan import ASPECT, MAX_EPOCHS
from common.errors import UserError
from model.config import PLAIN, PRESETS, Shape
from model.optim.settings import AUTO, OPTIMIZERS, OptimSettings

CONF = Path(__file__).parent / "conf"

# What a sweep ranks its jobs by, besides the tasks in eval.tasks: figures of the final evaluation.
METRICS = ("loss", "bits_per_byte", "perplexity", "accuracy")

# Successive halving (Jamieson & Talwalkar 2016) keeps the better half of a sweep's jobs at these shares of the budget.
HALVING_RUNGS = (0.25, 0.5)


@dataclass(frozen=True)
class Option:
    """The help text and the allowed values of one option. null is allowed if the type of the option allows it.

    Attributes:
        help: One phrase with the unit, the choices and the meaning of null.
        choices: Allowed values; empty if any value in the range is allowed.
        range: The allowed numbers as an interval, e.g. "(0, 1]"; empty if any number is allowed.
        path: Whether the value is the path of a file or folder. `~` in it is expanded.
        unit: hours | seconds | count | bytes for a number that may also be written as in common/units.py, e.g. 3h or 10B.
        literal: Whether the value is a text that may be typed without the quotes and brackets of Hydra's grammar.
        identity: Whether the option affects training. If so, it is part of the hash in the name of a run's folder.
        added_later: Whether the option is newer than existing runs; see the function `identity`.
        common: Whether `--help` lists the option on its first page.
    """

    help: str
    choices: tuple[str, ...] = ()
    range: str = ""
    path: bool = False
    unit: str = ""
    literal: bool = False
    identity: bool = True
    added_later: bool = False
    common: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """The lower and the upper end of the range."""
        low, high = self.range[1:-1].split(", ")
        return float(low), float(high)

    def in_range(self, value: float) -> bool:
        """Whether `value` is in the range. NaN never is."""
        if not self.range:
            return True
        low, high = self.ends
        excluded = (low if self.range[0] == "(" else None, high if self.range[-1] == ")" else None)
        return low <= value <= high and value not in excluded


def option(default: Any, help: str, **rules: Any) -> Any:
    """A field of a configuration dataclass; `rules` are the attributes of `Option`."""
    metadata = {"option": Option(help, **rules)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def group(schema: type, identity: bool = True) -> Any:
    """A field that holds a group of options. `identity`: whether any option in it affects training."""
    return field(default_factory=schema, metadata={"identity": identity})


@dataclass
class BudgetConfig:
    """The limits of a run. The first limit that is reached ends it; at least one must be set."""

    hours: float | None = option(
        None,
        "wall-clock limit of the whole process, hours (or e.g. 3h, 90m, 45s, 1h30m, 2d); null: no limit",
        range="(0, 1e+06]",
        unit="hours",
        common=True,
    )
    flops: float | None = option(
        None,
        "training FLOPs, counted as 6N + 12 n_layer n_embd block_size per token (or e.g. 1e18, 500T); null: no limit",
        range="(0, 1e+30]",
        unit="count",
    )
    tokens: float | None = option(
        None, "training tokens (or e.g. 500M, 10B, 1e9); null: no limit", range="(0, 1e+18]", unit="count"
    )
    steps: int | None = option(None, "optimizer steps (or e.g. 20k); null: no limit", range="[1, 1e+12]", unit="count")
    counts: str = option(
        "all",
        "what counts towards budget.hours: all (from process start to exit) | training (optimizer steps only)",
        choices=("all", "training"),
    )
    extend: str | None = option(
        None,
        "total to add to the budget of an existing run, finished or not: 1h, 30m, 100steps, 10Btokens, 1e15flops, or a number"
        " in the unit of its only limit; recorded in its ledger; null: nothing",
        identity=False,
    )
    extend_hours: float = option(
        0.0,
        "hours (or e.g. 30m) to add to budget.hours of an existing run; recorded in its ledger",
        range="[0, 1e+06]",
        unit="hours",
        identity=False,
    )


@dataclass
class DeviceConfig:
    """The device, its CPU threads and the precision."""

    name: str = option("auto", "auto (CUDA if available, else MPS, else CPU) | cpu | cuda | cuda:N | mps")
    threads: int | None = option(None, "CPU threads; null: all cores available to this process", range="[1, 4096]")
    precision: str = option(
        "auto",
        "auto (CUDA: bfloat16, or float16 before Ampere; else float32) | float32 | bfloat16 | float16",
        choices=("auto", "float32", "bfloat16", "float16"),
    )


@dataclass
class TrainingDeviceConfig(DeviceConfig):
    """The device, its CPU threads, the precision and compilation."""

    name: str = option(
        "auto",
        "auto (CUDA if available, else MPS, else CPU) | cpu | cuda | cuda:N | mps; plan.py also plans for a GPU that this"
        " machine does not have, e.g. device=a100",
    )
    compile: str = option(
        "auto",
        "torch.compile: auto (if the budget is long enough to pay for it) | on | off | regional (one block at a time;"
        " compiles faster)",
        choices=("auto", "on", "off", "regional"),
    )
    peak_flops: float | None = option(
        None,
        "peak FLOP/s that MFU is relative to (or e.g. 312T); null: from the device table, else measured",
        range="[1e+06, 1e+20]",
        unit="count",
    )


LARGER = "from 1e14 FLOPs on or if only budget.steps is set"


@dataclass
class ModelConfig:
    """Sizes and architecture. The plan chooses the options that are null."""

    n_layer: int | None = option(None, "transformer blocks; null: chosen by the plan", common=True)
    n_head: int | None = option(None, "attention heads; null: n_embd / 64, or n_embd / 128 from n_embd = 1024 on")
    n_embd: int | None = option(None, "embedding width; null: chosen by the plan", common=True)
    block_size: int | None = option(
        None,
        "context length, tokens; null: 64 below 1e14 FLOPs (256 for bytes), 256 below 1e17, 512 below 1e19, else 1024",
    )
    vocab_size: int | None = option(
        None, "rows of the embedding matrix; null: the tokenizer's vocabulary size, rounded up to a multiple of 64"
    )
    ffn_hidden: int | None = option(
        None, "hidden size of the feed-forward layers; null: 4 n_embd, or 8/3 n_embd for swiglu"
    )
    dropout: float | None = option(
        None, "dropout probability, 0 <= p < 1; null: 0, or 0.1 for a plan of more than four epochs"
    )
    bias: bool = option(False, "use biases in linear layers and norms")
    tie: bool = option(False, "share one matrix between the token embedding and the output layer")
    position: str = option("rotary", "position encoding: learned | rotary")
    norm: str | None = option(None, f"layernorm | rmsnorm; null: rmsnorm {LARGER}, else layernorm")
    activation: str | None = option(None, f"gelu | relu2 | swiglu; null: relu2 {LARGER}, else gelu")
    qk_norm: bool | None = option(None, f"normalise queries and keys; null: true {LARGER}, else false")
    initialisation: str | None = option(
        None, f"gpt2 | zero (as gpt2, but residual output projections start at 0); null: zero {LARGER}, else gpt2"
    )
    rope_theta: float = option(10000.0, "base of the rotary frequencies")
    embed_norm: bool = option(True, "normalise the embedding before the first block")
    x0_shortcut: bool | None = option(
        None, f"add the embedding to the input of every block, with learned weights; null: true {LARGER}, else false"
    )
    value_embeddings: bool = option(False, "add a token embedding to the attention values of every second block")
    bigram_rows: int | None = option(
        None,
        "rows of the hashed bigram embedding, 0: no such embedding; null: 65536 below 1e17 FLOPs (from 2e12 to 1e14 FLOPs"
        " up to 262144, depending on the width), else 0",
    )
    softcap: float = option(0.0, "cap c on the logits, as c tanh(logits / c); 0: off")
    document_mask: bool = option(False, "restrict attention to tokens of the same document")


@dataclass
class InitConfig:
    """The first weights: random, or those of a model that exists already."""

    source: str = option(
        "scratch",
        "scratch (random) | run (the weights, architecture and tokenizer of init.checkpoint, with a new optimizer and"
        " schedule)",
        choices=("scratch", "run"),
        added_later=True,
    )
    checkpoint: str | None = option(
        None,
        "init=run: folder of a run, finished or not, e.g. outputs/NAME, or of one of its checkpoints",
        path=True,
        added_later=True,
    )


@dataclass
class DataConfig:
    """The corpus, its tokenizer and its validation split."""

    source: str = option(
        "stdlib",
        "stdlib (Python's standard library) | slimpajama | hub (a data set on the Hugging Face Hub) | text (your own files) |"
        " tokens (token files of nanoGPT, modded-nanogpt or llm.c) | mix (the corpora in data.mix)",
        choices=("stdlib", "slimpajama", "hub", "text", "tokens", "mix"),
    )
    mix: dict[str, Any] = option(
        {},
        "several corpora with weights, e.g. data.mix='{slimpajama: 0.8, texts/code: 0.2}'; each name is a preset of"
        " data= or else a file, folder or glob of text",
        added_later=True,
    )
    path: str | None = option(
        None,
        "text: file, folder or glob: .txt .md .jsonl .ndjson .json .csv .tsv .parquet .arrow .feather, compressed: .zst .gz .xz"
        " .bz2 .zip; tokens: file, folder or glob: .bin .npy; slimpajama: folder of a local copy; null: download it",
        path=True,
        common=True,
    )
    validation_path: str | None = option(
        None,
        "file, folder or glob with the validation text; all of data.path is then training text; null: the corpus' own"
        " validation split, or data.validation_fraction of data.path",
        path=True,
        added_later=True,
    )
    text_key: str = option(
        "text",
        "field or column with the text in JSON, .csv, .tsv, .parquet and .arrow files; a.b reads a nested field",
    )
    tokenizer: str = option(
        "bpe-4096",
        "gpt2 | any tiktoken encoding | bytes | bpe-N (N tokens, trained on the training split) | ./tokenizer.json (or the"
        " folder that holds it) | OWNER/NAME (on the Hugging Face Hub)",
        common=True,
    )
    validation_fraction: float = option(
        0.01,
        "fraction of the documents (or of a single document, or of token files) held out for validation if the corpus has no"
        " validation split",
        range="(0, 0.5]",
    )
    repo: str | None = option(
        None, "hub, slimpajama: data set on the Hugging Face Hub, OWNER/NAME, or a local copy", path=True
    )
    config: str | None = option(
        None, "hub: configuration of data.repo; null: its default or its only one", added_later=True
    )
    split: str = option("train", "hub: split of data.repo to train on", added_later=True)
    revision: str | None = option(None, "commit, tag or branch of data.repo; null: the newest commit")
    fallbacks: list[str] = option([], "REPO or REPO@REVISION to try, in this order, if data.repo is gone")
    max_bytes: int | None = option(
        None,
        "bytes of text to prepare (or e.g. 500MB, 1GB, 1GiB); null: the whole corpus",
        range="[1, 1e+18]",
        unit="bytes",
    )
    bad_documents: str = option(
        "refuse",
        "records without text, or that are not valid UTF-8 or JSON: refuse (stop) | skip (and count)",
        choices=("refuse", "skip"),
    )
    cache_dir: str = option("prepared", "folder for prepared corpora", path=True, identity=False)
    workers: int | None = option(
        None, "tokenizer threads; null: all cores available to this process", range="[1, 4096]", identity=False
    )


# Options of data.* that hold for every source of data.mix unless its preset sets them; those of RUN_WIDE always do.
MIX_WIDE = ("text_key", "validation_fraction", "max_bytes", "bad_documents")
RUN_WIDE = ("tokenizer", "cache_dir", "workers")
LARGEST_MIX = 64  # sources; data.loader draws from so many


def mixed_sources(data: DataConfig) -> dict[str, DataConfig]:
    """The options data.* of each source of a data.mix whose names are resolved (cli/mix.py), in alphabetical order."""
    shared = {name: getattr(data, name) for name in (*MIX_WIDE, *RUN_WIDE)}
    own = {name: {key: value for key, value in data.mix[name].items() if key != "weight"} for name in sorted(data.mix)}
    return {name: DataConfig(**{**shared, **options}) for name, options in own.items()}


@dataclass
class OptimConfig:
    """Optimizer, learning rate and batch size. The plan chooses the options that are null."""

    name: str = option(
        "auto",
        "auto (chosen by the plan) | adamw | muon (Muon for the matrices in the blocks, AdamW for the rest)",
        choices=(AUTO, *OPTIMIZERS),
    )
    learning_rate: float | None = option(
        None, "peak learning rate; null: chosen by the plan", range="[1e-12, 100]", common=True
    )
    weight_decay: float | None = option(
        None, "decoupled weight decay, matrices only; null: chosen by the plan", range="[0, 100]"
    )
    beta1: float = option(0.9, "Adam: decay rate of the first moment", range="[0, 1)")
    beta2: float | None = option(
        None,
        "Adam: decay rate of the second moment; null: 0.95 from 2^18 tokens per batch on, else 0.99",
        range="[0, 1)",
    )
    # A smaller eps is lost in float32, and a parameter without a gradient then gets an update of 0 / 0.
    eps: float = option(1e-8, "Adam: term added to the denominator", range="[1e-30, 1]")
    table_rate: float = option(
        0.3, "learning rate of bigram and value embeddings, as a multiple of optim.learning_rate", range="[0, 10000]"
    )
    momentum: float = option(0.95, "Muon: momentum, reached after the first 8 % of the budget", range="[0, 1)")
    normuon: bool = option(False, "Muon: normalise the update of each row (NorMuon)")
    cautious: bool = option(False, "Muon: decay a weight only where decay and update have the same sign")
    grad_clip: float = option(
        1.0, "maximum gradient norm, not counting bigram and value embeddings; 0: no clipping", range="[0, 1e+09]"
    )
    batch_tokens: int | None = option(
        None,
        "tokens per optimizer step, a multiple of model.block_size; null: chosen by the plan",
        range="[1, 1e+12]",
        unit="count",
        common=True,
    )
    micro_batch: int | None = option(
        None,
        "sequences per forward pass; affects speed and memory, not the result; null: chosen to fit in memory",
        range="[1, 1e+09]",
    )


@dataclass
class ScheduleConfig:
    """The learning rate as a function of the share of the budget that is spent."""

    shape: str = option("linear", "cosine | linear | wsd (warm-up, stable, decay) | constant")
    warmup: float | None = option(
        None, "share of the budget for warm-up, 0 <= share < 1; null: chosen by the plan, as many tokens as parameters"
    )
    floor: float = option(0.0, "final learning rate as a share of the peak, 0 to 1")
    decay: float = option(0.2, "wsd: share of the budget for the final decay")


@dataclass
class TaskConfig:
    """The options of all tasks; null: as in the task's preset, else the default in brackets."""

    kind: str | None = option(
        None,
        "how items are asked and marked: minimal_pairs | multiple_choice | classify | summarise | generate | competition |"
        " lm_eval",
        choices=("minimal_pairs", "multiple_choice", "classify", "summarise", "generate", "competition", "lm_eval"),
        added_later=True,
    )
    path: str | None = option(
        None,
        "file or folder with the task's items, or a folder that holds a folder with the task's name",
        path=True,
        added_later=True,
    )
    template: str | None = option(
        None,
        "text that the model is asked with, with {fields} of the item, or FILE:PATH",
        literal=True,
        added_later=True,
    )
    score: str | None = option(
        None,
        "what chooses among answers: sum (log-probability) | per_token | per_byte | per_character | pmi (minus that of the"
        " answer without the question) | letter (of A, B, C, ...) | generate (classify: the label that the model writes)"
        " (sum)",
        choices=("sum", "per_token", "per_byte", "per_character", "pmi", "letter", "generate"),
        added_later=True,
    )
    average: str | None = option(
        None,
        "minimal_pairs: score averaged over paradigm | phenomenon (phenomenon)",
        choices=("paradigm", "phenomenon"),
        added_later=True,
    )
    ties: str | None = option(
        None,
        "minimal_pairs: two equally likely sentences count half | good (as right, as in lm-evaluation-harness) (half)",
        choices=("half", "good"),
        added_later=True,
    )
    labels: Any = option(
        None,
        "classify: the labels, e.g. [positive, negative], or with the text of each, e.g. '{positive: chanya, negative: hasi}'"
        " (those of the items)",
        added_later=True,
    )
    text_key: str | None = option(
        None,
        "field with the text: classify (text); summarise, generate (text, prompt or question)",
        added_later=True,
    )
    label_key: str | None = option(
        None,
        "field with the right answer: classify (label); summarise, generate (answer, summary or reference)",
        added_later=True,
    )
    prefix: str | None = option(
        None,
        "where end-of-text is put first: empty (before empty contexts) | always (empty)",
        choices=("empty", "always"),
        added_later=True,
    )
    too_long: str | None = option(
        None,
        "items longer than the model's window: refuse | cut (the context, from the left, and count) | roll (cut, and score"
        " longer answers in several windows) (refuse)",
        choices=("refuse", "cut", "roll"),
        added_later=True,
    )
    bad_items: str | None = option(
        None, "invalid items: refuse (stop) | skip (and count) (refuse)", choices=("refuse", "skip"), added_later=True
    )
    max_new_tokens: int | None = option(
        None, "generated answers: greatest length, tokens (100)", range="[1, 1e+09]", added_later=True
    )
    length: int | None = option(
        None,
        "generated answers: target length, characters: an answer ends with the first sentence that reaches it"
        " (no target)",
        range="[1, 1e+09]",
        added_later=True,
    )
    stop: list[str] | None = option(
        None, "generated answers: texts that end an answer and are not part of it (none)", added_later=True
    )
    temperature: float | None = option(
        None,
        "generated answers: sampling temperature; 0: always the most likely token (0)",
        range="[0, 100]",
        added_later=True,
    )
    top_k: int | None = option(
        None, "generated answers: sample from the k most likely tokens (all)", range="[1, 1e+09]", added_later=True
    )
    top_p: float | None = option(
        None,
        "generated answers: sample from the most likely tokens whose probabilities add up to p (all)",
        range="(0, 1]",
        added_later=True,
    )
    repetition_penalty: float | None = option(
        None,
        "generated answers: penalty on the logits of tokens that have already occurred; 1: off (1)",
        range="[0.01, 100]",
        added_later=True,
    )
    seed: int | None = option(
        None, "generated answers: random seed for sampling (1337)", range="[0, 2147483647]", added_later=True
    )


@dataclass
class EvalConfig:
    """How often the model is evaluated, and on how many tokens."""

    tokens: int = option(
        262144,
        "validation tokens of the final evaluation; halved until it takes at most eval.max_fraction of budget.hours",
        range="[1, 1e+15]",
        unit="count",
    )
    every: float = option(
        0.1, "share of the budget between interim evaluations; 0: no interim evaluations", range="[0, 1]"
    )
    interim_tokens: int = option(
        16384, "validation tokens of each interim evaluation", range="[1, 1e+15]", unit="count"
    )
    max_fraction: float = option(
        0.05,
        "maximum share of budget.hours for the final evaluation, and for all interim evaluations together",
        range="(0, 1]",
    )
    tasks: Any = option(
        None,
        "tasks to score the model on, as tasks= of evaluate.py: some items at the interim evaluations, all at the end, within"
        " eval.max_fraction; null: none",
        added_later=True,
    )
    interim_items: int = option(
        200, "items of each task at an interim evaluation; 0: none", range="[0, 1e+09]", added_later=True
    )


@dataclass
class PlanConfig:
    """Limits of the plan, and the output of plan.py."""

    law_file: str = option(
        "outputs/law.json",
        "law=local: file with the scaling law fitted to your own runs by python -m budget.laws.refit",
        path=True,
    )
    aspect_min: float = option(
        ASPECT[0],
        "smallest n_embd / n_layer to consider; unless aspect_min or aspect_max is set, 16 for n_embd <= 256",
        range="[0.1, 1e+06]",
    )
    aspect_max: float = option(
        ASPECT[1],
        "largest n_embd / n_layer to consider; unless aspect_min or aspect_max is set, 128 for n_embd <= 256",
        range="[0.1, 1e+06]",
    )
    max_epochs: float | None = option(
        None,
        f"refuse a plan with more epochs than this; null: {MAX_EPOCHS:g}, or no limit for data=stdlib",
        range="(0, 1e+09]",
    )
    corpus_tokens: float | None = option(
        None,
        "plan.py: training tokens in the corpus (or e.g. 6B); null: its own number if it is prepared or known",
        range="[1, 1e+15]",
        unit="count",
        identity=False,
    )
    folder: str | None = option(
        None, "plan.py: folder for plan.json and plan.png; null: write no files", path=True, identity=False
    )


@dataclass
class CheckpointConfig:
    """How often the run is saved."""

    max_fraction: float = option(
        0.02, "maximum share of the time for saving; the interval is lengthened to meet it", range="(0, 1]"
    )
    every_s: float | None = option(
        None,
        "seconds between checkpoints (or e.g. 10m); null: 2 % of budget.hours, between 2 and 600, or 60 without"
        " budget.hours",
        range="(0, 1e+09]",
        unit="seconds",
    )


@dataclass
class WandbConfig:
    """Logging to Weights & Biases, off by default."""

    mode: str = option(
        "disabled",
        "Weights & Biases logging: online | offline (files to upload later) | disabled",
        choices=("online", "offline", "disabled"),
        common=True,
    )
    project: str = option("stint", "wandb project")
    entity: str | None = option(None, "wandb team or user; null: your default")
    group: str | None = option(None, "wandb group; null: the name of the sweep, or none outside a sweep")
    tags: list[str] = option([], "wandb tags; jobs of a sweep also get its name and their own overrides")
    timeout_s: float = option(
        8.0, "maximum wait for wandb at the start and at the end, seconds (or e.g. 1m)", range="(0, 60]", unit="seconds"
    )


@dataclass
class SweepConfig:
    """How the jobs of a sweep are compared, stopped early and restarted."""

    metric: str = option(
        "loss",
        f"metric that ranks the jobs: {' | '.join(METRICS)} | the name of a task in eval.tasks",
    )
    on_error: str = option("continue", "after a failed job: continue | stop", choices=("continue", "stop"))
    hours: float | None = option(
        None,
        "device hours (or e.g. 90m, 2d) of the whole sweep, shared by all jobs; hours left over extend the best job;"
        " null: no limit",
        range="(0, 1e+06]",
        unit="hours",
    )
    prune: str = option(
        "none",
        "stop jobs early: none | median (worse than the median of the others) | halving (the worse half, at"
        f" {100 * HALVING_RUNGS[0]:g} % and {100 * HALVING_RUNGS[1]:g} % of the budget)",
        choices=("none", "median", "halving"),
    )
    prune_from: float = option(
        0.25, "share of its budget that a job gets before it may be stopped early", range="(0, 0.9]"
    )
    retries: int = option(1, "how many times a failed or killed job is restarted", range="[0, 100]")


@dataclass
class Config:
    """Train the best language model that a compute budget buys. plan.py shows the plan without training.

    PROGRAM budget.hours=0.05
    PROGRAM budget.hours=3h data=slimpajama model=llama
    PROGRAM -m budget.hours=0.05 model.dropout=0,0.1
    """

    budget: BudgetConfig = group(BudgetConfig)
    device: TrainingDeviceConfig = group(TrainingDeviceConfig)
    model: ModelConfig = group(ModelConfig)
    init: InitConfig = group(InitConfig)
    data: DataConfig = group(DataConfig)
    optim: OptimConfig = group(OptimConfig)
    schedule: ScheduleConfig = group(ScheduleConfig)
    eval: EvalConfig = group(EvalConfig)
    task: TaskConfig = group(TaskConfig)
    checkpoint: CheckpointConfig = group(CheckpointConfig, identity=False)
    wandb: WandbConfig = group(WandbConfig, identity=False)
    plan: PlanConfig = group(PlanConfig)
    sweep: SweepConfig = group(SweepConfig, identity=False)
    name: str = option(
        "run",
        "first part of the run's folder name; the second is a hash of the options that affect training",
        common=True,
    )
    seed: int = option(
        1337, "random seed for initialisation, data order, dropout and sampling", range="[0, 2147483647]", common=True
    )
    output_dir: str = option("outputs", "folder for runs", path=True, identity=False)
    fresh: bool = option(
        False, "start again; an existing run of the same name is renamed to NAME.old-K", identity=False
    )
    law: str = option(
        "chinchilla-table3", f"scaling law: {' | '.join(LAWS)} | local (from plan.law_file)", choices=(*LAWS, LOCAL)
    )
    mfu: float | None = option(
        None,
        "MFU to plan with, as a share of the device's peak; null: measured, else from the device table",
        range="[1e-06, 1]",
    )
    probe: bool | None = option(
        None, "measure candidate shapes on this device before planning; null: true for train.py, false for plan.py"
    )
    explain: bool = option(False, "plan.py: print how each number of the plan is derived", identity=False)
    output: str = option(
        "text",
        "text | json (one JSON object on standard output, everything else on standard error)",
        choices=("text", "json"),
        identity=False,
    )


@dataclass
class EvaluateDataConfig:
    """The text to score."""

    path: str | None = option(
        None,
        "file, folder or glob of text, in the formats of data=text of train.py; required without tasks",
        path=True,
        common=True,
    )
    text_key: str = option(
        "text",
        "field or column with the text in JSON, .csv, .tsv, .parquet and .arrow files; a.b reads a nested field",
    )
    bad_documents: str = option(
        "refuse",
        "records without text, or that are not valid UTF-8 or JSON: refuse (stop) | skip (and count)",
        choices=("refuse", "skip"),
    )


@dataclass
class EvaluateConfig:
    """Score a trained model on text, or on tasks.

    PROGRAM checkpoint=outputs/NAME data.path=my.jsonl.zst
    PROGRAM checkpoint=outputs/NAME data.path=texts/ output=json
    PROGRAM checkpoint=outputs/NAME tasks=[blimp] task.path=blimp/
    PROGRAM checkpoint=outputs/NAME tasks=[blimp:blimp/,hellaswag] limit=100 baseline=first.json
    """

    checkpoint: str | None = option(
        None,
        "folder of a run, finished or not, e.g. outputs/NAME; required, except with answers",
        path=True,
        common=True,
    )
    data: EvaluateDataConfig = group(EvaluateDataConfig)
    tasks: Any = option(
        None,
        "benchmarks to score: a list of presets in conf/task/, NAME:PATH, or lm_eval:NAME (a task of lm-evaluation-harness);"
        " or a mapping from names to options task.*, e.g. '{quiz: {kind: multiple_choice, path: quiz.jsonl}}'",
        common=True,
    )
    task: TaskConfig = group(TaskConfig)
    limit: int | None = option(
        None,
        "score only the first N items of each task (of minimal pairs: of each paradigm; of several files of questions: of each"
        " file), of those that fraction leaves; null: all",
        range="[1, 1e+15]",
        unit="count",
        common=True,
    )
    fraction: float = option(
        1.0,
        "score this share of the items of each task, evenly spaced in each of its groups, the same each time",
        range="(0, 1]",
        common=True,
    )
    skip: list[str] = option([], "names of tasks to leave out, also of single tasks of a competition's file")
    baseline: str | None = option(
        None,
        "file of an evaluation to compare with; if it does not exist, this evaluation is kept there as the baseline",
        path=True,
        common=True,
    )
    route: dict[str, Any] = option(
        {}, "checkpoints of single tasks, e.g. '{summarization: outputs/B}'; checkpoint= answers the others"
    )
    submission: str | None = option(
        None, "competition: file to write the answers to, in the format of the items", path=True
    )
    answers: str | None = option(None, "competition: score the answers in this file instead of a model's", path=True)
    reference_parameters: float | None = option(
        None,
        "report scores adjusted by size, s (1 - r/2) with r = parameters / reference_parameters (or e.g. 420M)",
        range="[1, 1e+18]",
        unit="count",
    )
    folder: str | None = option(
        None,
        "folder for answers, predictions and report; null: evaluations/ in the run's folder, and none with answers",
        path=True,
        common=True,
    )
    device: DeviceConfig = group(DeviceConfig)
    tokens: int | None = option(
        None, "score only the first N tokens (or e.g. 1M); null: all tokens", range="[1, 1e+15]", unit="count"
    )
    micro_batch: int = option(
        16, "sequences per forward pass; affects speed and memory, not the result", range="[1, 1e+09]"
    )
    output: str = option(
        "text", "text | json (one JSON object on standard output)", choices=("text", "json"), common=True
    )


@dataclass
class SampleConfig:
    """Generate text with a trained model.

    PROGRAM checkpoint=outputs/NAME
    PROGRAM checkpoint=outputs/NAME prompts="Once upon a time" samples=3 temperature=0.7
    PROGRAM checkpoint=outputs/NAME prompts=FILE:prompts.txt output=json
    """

    checkpoint: str | None = option(None, "folder of a run, finished or not, e.g. outputs/NAME; required", path=True)
    prompts: list[str] = option(
        [""],
        'prompts to continue: one text, a list, e.g. prompts=\'["def ","The "]\', or prompts=FILE:PATH (one per line, or'
        ' .json and .jsonl with strings or {"prompt": ...}); outside files, \\n, \\t and \\\\ are a line end, a tab and a'
        " backslash; an empty prompt starts a new document",
        literal=True,
    )
    device: DeviceConfig = group(DeviceConfig)
    samples: int = option(1, "samples per prompt", range="[1, 1e+06]")
    tokens: int = option(
        200, "maximum length of a sample, tokens; end-of-text ends it earlier", range="[1, 1e+15]", unit="count"
    )
    temperature: float = option(0.8, "sampling temperature; 0: always the most likely token", range="[0, 100]")
    top_k: int | None = option(None, "sample from the k most likely tokens; null: from all", range="[1, 1e+09]")
    top_p: float | None = option(
        None, "sample from the most likely tokens whose probabilities add up to p; null: from all", range="(0, 1]"
    )
    repetition_penalty: float = option(
        1.0, "penalty on the logits of tokens that have already occurred; 1: off", range="[0.01, 100]"
    )
    seed: int = option(1337, "random seed for sampling", range="[0, 2147483647]")
    output: str = option("text", "text | json (one JSON object on standard output)", choices=("text", "json"))


SCRIPTS: dict[str, type] = {"config": Config, "evaluate": EvaluateConfig, "sample": SampleConfig}


@dataclass(frozen=True)
class Removed:
    """An option of earlier versions: its default, and the advice that the error message gives. `identity` as in `Option`."""

    value: Any
    advice: str
    identity: bool = True


OWN_RATE = "optim.table_rate scales the bigram and value embeddings; all else trains at optim.learning_rate"
OWN_SAMPLES = "the report shows three short samples; sample.py generates others"
REMOVED_OPTIONS = {
    "model.size": Removed(None, "set model.n_layer and model.n_embd", identity=False),
    "model.value_residual": Removed(False, "model.value_embeddings=true is the closest option"),
    "optim.embedding_rate": Removed(1.0, OWN_RATE),
    "optim.head_rate": Removed(1.0, OWN_RATE),
    "optim.vector_rate": Removed(1.0, OWN_RATE),
    "samples.prompts": Removed(["def ", "import ", "The "], OWN_SAMPLES),
    "samples.tokens": Removed(64, OWN_SAMPLES),
    "samples.temperature": Removed(0.8, OWN_SAMPLES),
    "samples.top_k": Removed(50, OWN_SAMPLES),
    "sweep.known": Removed(None, "write it as a comment in the sweep's file", identity=False),
}


def removal_message(name: str) -> str | None:
    """The error message if `name` is an option, or a whole group, of earlier versions; None for any other name."""
    removed = REMOVED_OPTIONS.get(name)
    if name not in (leaf.name for leaf in fields(Config)):
        removed = removed or next((entry for key, entry in REMOVED_OPTIONS.items() if key.startswith(f"{name}.")), None)
    return None if removed is None else f"{name} was removed; leave it out: {removed.advice}"


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
    """Names of the groups and options that do not affect training."""
    outside = [leaf.name for leaf in fields(Config) if not leaf.metadata.get("identity", True)]
    yield from outside
    yield from (
        name for name, rules, _ in leaves(Config) if not rules.identity and name.partition(".")[0] not in outside
    )


# Changing these does not change the name of the run's folder.
NOT_IDENTITY = tuple(_outside_identity())


def identity(config: Config) -> dict[str, Any]:
    """The options that affect training, nested by group; their hash is part of the name of the run's folder.

    The same command must give the same hash in every later version, or it would not find its earlier run. A removed option
    therefore still contributes its old default, and an option that is `added_later` contributes only if it is not at its
    default.
    """
    defaults = {name: value for name, _, value in leaves(type(config)())}
    options = {name: removed.value for name, removed in REMOVED_OPTIONS.items() if removed.identity}
    for name, rules, value in leaves(config):
        outside = name in NOT_IDENTITY or name.partition(".")[0] in NOT_IDENTITY
        if not outside and not (rules.added_later and value == defaults[name]):
            options[name] = value
    for name in ("data.path", "data.validation_path"):
        if options.get(name) is not None:
            options[name] = str(Path(options[name]).resolve())
    if "/" in config.data.tokenizer or config.data.tokenizer.endswith(".json"):  # a file, or a name on the Hub
        file = Path(config.data.tokenizer).expanduser()
        options["data.tokenizer"] = str(file.resolve()) if file.exists() else config.data.tokenizer
    if config.eval.tasks:
        options["eval.tasks"] = {name: _with_full_path(task) for name, task in config.eval.tasks.items()}
        options = {name: value for name, value in options.items() if not name.startswith("task.")}  # part of eval.tasks
    if config.init.checkpoint is not None:
        options["init.checkpoint"] = str(Path(config.init.checkpoint).expanduser().resolve())
    if config.data.mix:
        options["data.mix"] = {name: _with_full_path(entry) for name, entry in config.data.mix.items()}
    nested: dict[str, Any] = {}
    for name, value in options.items():
        group, _, leaf = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    return nested


def _with_full_path(entry: Any) -> Any:
    """An entry of data.mix or eval.tasks with its path in full."""
    if not isinstance(entry, dict) or entry.get("path") is None:
        return entry
    return {**entry, "path": str(Path(entry["path"]).expanduser().resolve())}


def extension_of(budget: BudgetConfig) -> Extension:
    """What budget.extend and budget.extend_hours add to the limits. Raises UserError in one line for anything else."""
    limits = {unit: amount for unit in UNITS if (amount := getattr(budget, unit)) is not None}
    if budget.extend is None:
        return Extension(hours=budget.extend_hours)
    added, rules = parse_extension(budget.extend, list(limits)), {name: rule for name, rule, _ in leaves(budget)}
    if added.hours and budget.extend_hours:
        raise UserError(
            f"budget.extend={budget.extend} and budget.extend_hours={budget.extend_hours:g}: give one of them"
        )
    for unit, amount in added.to_dict().items():
        if not rules[unit].in_range(limits[unit] + amount):
            raise UserError(
                f"budget.extend={budget.extend} makes budget.{unit} {limits[unit] + amount:g}; allowed: {rules[unit].range}"
            )
    return replace(added, hours=added.hours + budget.extend_hours)


def template(config: Config) -> Shape:
    """The architecture that the options ask for, with valid placeholders for what the plan chooses. `with_eot` adds the
    id of end-of-text."""
    values = {leaf.name: getattr(config.model, leaf.name) for leaf in fields(Shape) if leaf.name != "eot"}
    placeholders = {"n_layer": 1, "n_head": 1, "block_size": 1, "vocab_size": 1, "dropout": 0.0, "bigram_rows": 0}
    placeholders |= {"n_embd": 64 * max(1, values["n_head"] or 1)}
    placeholders |= {name: PRESETS["modern"][name] for name in open_block(config)}
    return Shape(**values | {name: value for name, value in placeholders.items() if values[name] is None})


def open_block(config: Config) -> list[str]:
    """The options of a block that the plan chooses by the compute budget."""
    return [name for name in PLAIN if getattr(config.model, name) is None]


def with_eot(config: Config, shape: Shape, eot: int) -> Shape:
    """`shape` with the id of end-of-text if model.document_mask needs it."""
    return replace(shape, eot=eot) if config.model.document_mask else shape


def optim_settings(config: Config) -> OptimSettings:
    """The optimizer settings that the options ask for."""
    return OptimSettings(**{leaf.name: getattr(config.optim, leaf.name) for leaf in fields(OptimSettings)})
