"""GPT-2 (Radford et al., 2019): LayerNorm, learned positions, GELU; named and laid out as GPT2LMHeadModel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config

from autog.models.parts import Decoder, causal_attention, require_multiple, require_positive, without_bias


class Conv1D(nn.Module):
    """A linear layer whose matrix is kept (in, out), as the published GPT-2 files have it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.empty(width_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    """Causal attention; queries, keys and values come from one matrix."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads = config.n_head
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.c_proj(causal_attention(query, key, value))


class MLP(nn.Module):
    """Two layers around the tanh form of GELU (Hendrycks and Gimpel, 2016), which Hugging Face calls gelu_new."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, inner)
        self.c_proj = Conv1D(inner, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then the MLP, each normalised first and added to what came in."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Stack(nn.Module):
    """All but the head, held together only for the names: `GPT2` runs it."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)


class GPT2(Decoder):
    """The decoder; `forward` gives logits (rows, length, vocabulary), or with labels their summed loss in fp32."""

    base = "transformer"
    architecture = "GPT2LMHeadModel"
    residual = ("attn.c_proj.weight", "mlp.c_proj.weight")
    shape = ("n_embd", "n_layer", "n_head")
    fields = frozenset(
        {*shape, "n_inner", "vocab_size", "n_positions", "tie_word_embeddings"}
        | {"layer_norm_epsilon", "initializer_range"}
    )
    fixed = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "resid_pdrop": (0,),
        "embd_pdrop": (0,),
        "attn_pdrop": (0,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    }

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        require_positive(config, (*self.shape, "vocab_size", "n_positions", *(["n_inner"] if config.n_inner else [])))
        require_multiple(config, "n_embd", "n_head")
        self.transformer = Stack(config)
        if not config.tie_word_embeddings:
            self.lm_head = without_bias(config.n_embd, config.vocab_size)

    @staticmethod
    def at_depth(depth: int, given: dict[str, Any]) -> dict[str, Any]:
        """The shape that `depth: N` stands for: 64 wide per layer, heads of 64; 12 is the published GPT-2."""
        width = given.get("n_embd", 64 * depth)
        return {"n_layer": depth, "n_embd": width, "n_head": max(1, width // 64)}

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.h

    def forward(self, ids: Tensor, labels: Tensor | None = None, *, chunk_tokens: int | None = None) -> Tensor:
        self.check_length(ids)
        positions = self.transformer.wpe(torch.arange(ids.shape[1], device=ids.device))
        hidden = self.transformer.ln_f(self.run_blocks(self.transformer.wte(ids) + positions))
        head = self.transformer.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return self.apply_head(hidden, head, labels, chunk_tokens)
