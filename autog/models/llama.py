"""Llama (Touvron et al., 2023): RMSNorm, rotary positions, grouped queries, SwiGLU; named as LlamaForCausalLM."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig

from autog.errors import UsageError
from autog.models.parts import (
    Decoder,
    causal_attention,
    require_multiple,
    require_positive,
    rotary_tables,
    rotate,
    without_bias,
)


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich, 2019) in fp32, cast back before the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions; several query heads may share a key and value head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        # The config fills both in from the number of heads where they are not given.
        assert config.head_dim is not None and config.num_key_value_heads is not None
        self.head_dim = config.head_dim
        self.q_proj = without_bias(config.hidden_size, config.num_attention_heads * config.head_dim)
        self.k_proj = without_bias(config.hidden_size, config.num_key_value_heads * config.head_dim)
        self.v_proj = without_bias(config.hidden_size, config.num_key_value_heads * config.head_dim)
        self.o_proj = without_bias(config.num_attention_heads * config.head_dim, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(causal_attention(rotate(query, cos, sin), rotate(key, cos, sin), value))


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = without_bias(config.hidden_size, config.intermediate_size)
        self.up_proj = without_bias(config.hidden_size, config.intermediate_size)
        self.down_proj = without_bias(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then the MLP, each normalised first and added to what came in."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """All but the head, held together only for the names: `Llama` runs it."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(Decoder):
    """The decoder; `forward` gives logits (rows, length, vocabulary), or with labels their summed loss in fp32."""

    base = "model"
    architecture = "LlamaForCausalLM"
    residual = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields = frozenset(
        {*shape, "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings"}
        | {"rms_norm_eps", "initializer_range", "rope_parameters", "rope_theta"}
    )
    fixed = {"hidden_act": ("silu",), "attention_dropout": (0,), "attention_bias": (False,), "mlp_bias": (False,)}

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        require_positive(config, (*self.shape, "num_key_value_heads", "head_dim", "vocab_size"))
        require_multiple(config, "num_attention_heads", "num_key_value_heads")
        if config.head_dim is None or config.head_dim % 2:
            raise UsageError(f"model.head_dim = {config.head_dim} must be even: rotary positions turn pairs")
        self.theta = plain_rotary_theta(config)
        self.model = Stack(config)
        if not config.tie_word_embeddings:
            self.lm_head = without_bias(config.hidden_size, config.vocab_size)

    @staticmethod
    def at_depth(depth: int, given: dict[str, Any]) -> dict[str, Any]:
        """The shape that `depth: N` stands for: 64 wide per layer, heads of 64, an MLP of 8/3 the width."""
        width = given.get("hidden_size", 64 * depth)
        heads = max(1, width // given.get("head_dim", 64))
        return {
            "num_hidden_layers": depth,
            "hidden_size": width,
            "num_attention_heads": heads,
            "intermediate_size": -(-8 * width // (3 * 64)) * 64,
        }

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.layers

    def forward(self, ids: Tensor, labels: Tensor | None = None, *, chunk_tokens: int | None = None) -> Tensor:
        self.check_length(ids)
        tables = rotary_tables(ids.shape[1], self.config.head_dim, self.theta, ids.device)
        hidden = self.model.norm(self.run_blocks(self.model.embed_tokens(ids), *tables))
        head = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return self.apply_head(hidden, head, labels, chunk_tokens)


def plain_rotary_theta(config: LlamaConfig) -> float:
    """The base of the rotary frequencies; UsageError for any kind but the plain one."""
    rope: dict[str, Any] = {**(config.rope_parameters or {})}
    kind, theta = rope.pop("rope_type", "default"), rope.pop("rope_theta", None)
    stray = {name: value for name, value in rope.items() if not (name == "partial_rotary_factor" and value == 1.0)}
    if kind != "default" or stray:
        raise UsageError(f"model.rope_parameters = {config.rope_parameters} is not built: only rope_type default is")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 1:
        raise UsageError(f"model.rope_theta = {theta!r} must be a number above 1, e.g. 10000")
    return float(theta)
