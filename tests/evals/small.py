"""Small models and tokenizers for the tests of evaluations."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.tokenizers.tokenizer import Tokenizer, get_tokenizer
from evals.scoring import Scorer
from model.config import PRESETS, Shape
from model.gpt import GPT

SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 2, "n_embd": 32, "block_size": 96, "vocab_size": 257}
VARIANTS: dict[str, dict[str, Any]] = {
    "classic": PRESETS["classic"] | {"bias": True},
    "llama": PRESETS["llama"],
    "modern": PRESETS["modern"] | {"bigram_rows": 61, "softcap": 5.0},
    "documents": PRESETS["modern"] | {"bigram_rows": 61, "value_embeddings": True, "eot": 256},
}


def bytes_tokenizer() -> Tokenizer:
    return get_tokenizer("bytes", None, Path(), "")


def build(variant: str = "llama", **changed: Any) -> GPT:
    """A model whose weights are far from their initial values, so that every part affects the scores."""
    torch.manual_seed(0)
    model = GPT(Shape(**SIZES | VARIANTS[variant] | changed))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def scorer(model: GPT, tokenizer: Tokenizer | None = None, **changed: Any) -> Scorer:
    return Scorer(model, tokenizer or bytes_tokenizer(), "cpu", contextlib.nullcontext, **changed)


def pair_of_llamas(vocab_size: int) -> tuple[GPT, Any]:
    """The same weights as a model of stint and of transformers."""
    transformers = pytest.importorskip("transformers")
    from tests.model.test_reference import from_llama, randomised

    theirs = randomised(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=vocab_size,
                max_position_embeddings=64,
                hidden_size=64,
                intermediate_size=192,
                num_hidden_layers=3,
                num_attention_heads=4,
                tie_word_embeddings=False,
            )
        )
    )
    shape = Shape(3, 4, 64, 64, vocab_size, **PRESETS["llama"], tie=False)
    ours = GPT(shape)
    ours.load_state_dict(from_llama(theirs.state_dict(), tie=False))
    return ours, theirs


def trained_tokenizer(folder: Path, texts: Sequence[str]) -> Path:
    """Train byte-level BPE on texts. Returns the path of its tokenizer.json."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    path = folder / "tokenizer.json"
    library.save(str(path))
    return path
