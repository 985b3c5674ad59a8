"""Check that `classic` trains like nanoGPT's GPT-2: twenty steps from the same weights on the same batches.

    python -m bench.peers.same_as_nanogpt --peer ../nanoGPT      # half a minute; skipped without a checkout

The checkout's train.py runs unchanged on a small random corpus and prints the loss of each step. Then stint's train.py trains
`classic` from the same initial weights on the same batches. The losses must agree in the 4 digits that nanoGPT prints.
Writes bench/results/same_as_nanogpt.json.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.common import RESULTS, TRAIN_ONLY, argument_parser, metrics_of, write_result
from bench.peers.checkout import SCRIPTS, flags
from data.batch import Batch

RESULT = RESULTS / "same_as_nanogpt.json"
STEPS, SEED, SPREAD = 20, 1337, 1e-4
SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 512}
BATCH, RATE, DECAY, BETAS, CLIP = 12, 1e-3, 0.1, (0.9, 0.99), 1.0
# Parts of nanoGPT's parameter names, and stint's names for them.
NAMES = {
    "transformer.": "",
    "h.": "blocks.",
    "ln_1.": "attention_norm.",
    "ln_2.": "feed_forward_norm.",
    "ln_f.": "norm.",
    "attn.c_attn.": "attention.qkv.",
    "attn.c_proj.": "attention.out.",
    "mlp.c_fc.": "feed_forward.up.",
    "mlp.c_proj.": "feed_forward.out.",
}


def rename_parameter(name: str) -> str:
    """stint's name of a parameter of nanoGPT."""
    for theirs, ours in NAMES.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(theirs)}", ours, name)
    return name


def peer_module(checkout: Path) -> Any:
    """Import the checkout's model.py under a name that does not collide with stint's."""
    spec = importlib.util.spec_from_file_location("peer_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def peer_losses(checkout: Path, place: Path, tokens: np.ndarray) -> list[float]:
    """The losses that nanoGPT's train.py prints."""
    data = place / "data" / "random"
    data.mkdir(parents=True)
    for split in ("train", "val"):
        tokens.tofile(data / f"{split}.bin")
    settings = {
        **{key: value for key, value in SIZES.items() if key != "vocab_size"},
        "dataset": "random",
        "device": "cpu",
        "compile": False,
        "batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "learning_rate": RATE,
        "decay_lr": False,
        "weight_decay": DECAY,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "grad_clip": CLIP,
        "max_iters": STEPS - 1,
        "eval_interval": 10**6,
        "eval_iters": 1,
        "out_dir": str(place / "out"),
    }
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": SIZES["vocab_size"]}))
    command = [sys.executable, str(SCRIPTS / "nanogpt_train.py"), str(checkout), "0"]
    done = subprocess.run([*command, *flags(settings)], cwd=place, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return [float(found) for found in re.findall(r"iter \d+: loss ([\d.]+)", done.stdout)]


def peer_start(checkout: Path, tokens: np.ndarray) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """nanoGPT's initial weights, with stint's names, and its batches (x, y), int64 (B, T).

    Its generator draws one batch before the loop, one per split for the evaluation at the first iteration, then one per
    iteration."""
    module = peer_module(checkout)
    torch.manual_seed(SEED)
    model = module.GPT(module.GPTConfig(**SIZES, bias=False, dropout=0.0))
    weights = {
        rename_parameter(name): value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    length = SIZES["block_size"]

    def draw() -> tuple[Tensor, Tensor]:
        at = torch.randint(len(tokens) - length, (BATCH,))
        x, y = (
            torch.stack([torch.from_numpy(tokens[i + shift : i + shift + length].astype(np.int64)) for i in at])
            for shift in (0, 1)
        )
        return x, y

    first = draw()
    for _ in range(2):
        draw()
    return weights, [first, *(draw() for _ in range(STEPS - 1))]


def our_losses(place: Path, weights: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    """The losses of stint's train.py, with nanoGPT's weights and batches in place of its own."""
    import train
    from cli.launch import launch
    from config import Config
    from run.checkpoint import load_weights

    plain_build = train.build

    class Replay:
        def batch(self, step: int) -> Batch[np.ndarray]:
            return Batch(*(tokens.numpy() for tokens in batches[step]))

    def build(*arguments: Any) -> Any:
        trainer = plain_build(*arguments)
        load_weights(trainer.model, weights, "the peer's weights")
        trainer.loader = Replay()  # type: ignore[assignment]
        return trainer

    train.build = build
    text = place / "text.txt"
    text.write_text("\n".join(f"line {i} of a text that is not used" for i in range(4000)))
    sys.argv = [
        *("train.py", "model=classic", "optim=adamw", "data=text", f"data.path={text}", "data.tokenizer=bytes"),
        *(f"model.{key}={value}" for key, value in SIZES.items()),
        *(f"budget.steps={STEPS}", f"optim.batch_tokens={BATCH * SIZES['block_size']}", "schedule=constant"),
        *("schedule.warmup=0", f"optim.learning_rate={RATE}", f"optim.weight_decay={DECAY}", "model.dropout=0"),
        *(f"optim.beta1={BETAS[0]}", f"optim.beta2={BETAS[1]}", f"optim.grad_clip={CLIP}", "device=cpu"),
        *(*TRAIN_ONLY, "eval.tokens=1024", f"output_dir={place / 'runs'}", f"data.cache_dir={place / 'prepared'}"),
    ]

    def main(config: Config) -> None:
        train.main(config)

    launch(main, "config")
    return [point["loss"] for point in metrics_of(next((place / "runs").glob("run-*"))) if "loss" in point]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of nanoGPT")
    checkout = parser.parse_args().peer.resolve()
    if not (checkout / "model.py").exists():
        print(f"{checkout} is not a checkout of nanoGPT; skipped")
        return
    tokens = np.random.default_rng(0).zipf(1.3, 100_000).clip(max=SIZES["vocab_size"]).astype(np.uint16) - 1
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        theirs = peer_losses(checkout, place, tokens)
        ours = our_losses(place, *peer_start(checkout, tokens))
    spread = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    content = {
        "how": "python -m bench.peers.same_as_nanogpt --peer CHECKOUT",
        "torch": torch.__version__,
        "steps": len(ours),
        "largest_difference": spread,
        "allowed": SPREAD,
        "nanogpt": theirs,
        "stint": ours,
    }
    write_result(RESULT, content)
    print(f"{len(ours)} steps, losses {theirs[0]} to {theirs[-1]}: at most {spread:.1e} apart")
    if spread > SPREAD:
        sys.exit(1)


if __name__ == "__main__":
    main()
