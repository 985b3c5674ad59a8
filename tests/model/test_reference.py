"""Tests that the same weights give the same logits here and in transformers' GPT-2 and Llama."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config import PRESETS, Shape
from model.gpt import GPT

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 32, "vocab_size": 160}


def randomised(module: nn.Module) -> nn.Module:
    """Set weights and biases far from their initial values of 0 and 1, so that every part affects the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if is_norm(name) else 0.1 * noise)
    return module.eval()


def is_norm(name: str) -> bool:
    return name.endswith("weight") and ("ln_" in name or "norm" in name)


def from_gpt2(theirs: dict[str, Tensor], tie: bool) -> dict[str, Tensor]:
    """Convert GPT-2's weights, which are stored transposed ("Conv1D")."""
    ours = {"wte.weight": theirs["transformer.wte.weight"], "wpe.weight": theirs["transformer.wpe.weight"]}
    parts = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "feed_forward_norm",
        "mlp.c_fc": "feed_forward.up",
        "mlp.c_proj": "feed_forward.out",
    }
    for i in range(SIZES["n_layer"]):
        for their_name, our_name in parts.items():
            for kind in ("weight", "bias"):
                tensor = theirs[f"transformer.h.{i}.{their_name}.{kind}"]
                ours[f"blocks.{i}.{our_name}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
    return ours if tie else ours | {"head.weight": theirs["lm_head.weight"]}


def from_llama(theirs: dict[str, Tensor], tie: bool) -> dict[str, Tensor]:
    ours = {"wte.weight": theirs["model.embed_tokens.weight"], "norm.weight": theirs["model.norm.weight"]}
    parts = {
        "attention_norm": ["input_layernorm"],
        "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention.out": ["self_attn.o_proj"],
        "feed_forward_norm": ["post_attention_layernorm"],
        "feed_forward.up": ["mlp.gate_proj", "mlp.up_proj"],
        "feed_forward.out": ["mlp.down_proj"],
    }
    for i in range(SIZES["n_layer"]):
        for our_name, their_names in parts.items():
            tensors = [theirs[f"model.layers.{i}.{their_name}.weight"] for their_name in their_names]
            ours[f"blocks.{i}.{our_name}.weight"] = torch.cat(tensors)
    return ours if tie else ours | {"head.weight": theirs["lm_head.weight"]}


def gpt2(tie: bool) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=SIZES["vocab_size"],
        n_positions=SIZES["block_size"],
        n_embd=SIZES["n_embd"],
        n_layer=SIZES["n_layer"],
        n_head=SIZES["n_head"],
        activation_function="gelu",
        tie_word_embeddings=tie,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(tie: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=SIZES["vocab_size"],
        max_position_embeddings=SIZES["block_size"],
        hidden_size=SIZES["n_embd"],
        intermediate_size=192,
        num_hidden_layers=SIZES["n_layer"],
        num_attention_heads=SIZES["n_head"],
        tie_word_embeddings=tie,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("reference", "convert", "options"),
    [(gpt2, from_gpt2, PRESETS["classic"] | {"bias": True}), (llama, from_llama, PRESETS["llama"])],
    ids=["gpt2", "llama"],
)
def test_logits_equal_those_of_transformers(reference: Any, convert: Any, options: dict[str, Any], tie: bool) -> None:
    theirs = randomised(reference(tie))
    ours = GPT(Shape(**SIZES, **options, tie=tie)).eval()
    ours.load_state_dict(convert(theirs.state_dict(), tie))
    tokens = torch.randint(SIZES["vocab_size"], (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.3
    assert ours.shape.parameters() == sum(parameter.numel() for parameter in theirs.parameters())
