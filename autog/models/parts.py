"""What the families share: rotary positions, attention, the loss head, and the frame of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from autog.errors import UsageError
from autog.plan import CHUNK_TOKENS, logits_limit

NOT_COUNTED = -100  # the label of a position that has no part in the loss
VOCAB_MULTIPLE = 64  # GEMMs of a head whose rows are no multiple of this run at a fraction of the speed on CUDA
CPU_PLAIN_LENGTH = 512


def rotary_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, each (length, head_dim) in fp32, of RoPE (Su et al., 2021).

    Made in every forward and never kept as buffers: transformers leaves those that are not saved at zero.
    """
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim))
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns (rows, length, heads, head_dim) by position; the halves of a head are the two coordinates, as in Llama."""
    # Rolling by half swaps the halves; the sign is in the table. On a CPU 1.4x faster than cutting and joining.
    return x * cos[:, None].to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin[:, None].to(x.dtype)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention to oneself and what came before: (rows, length, heads, head_dim) in, (rows, length, all heads) out.

    `key` and `value` may have fewer heads than `query` (grouped queries, Ainslie et al., 2023).
    """
    # The fused CPU kernel spends most of its bf16 backward on conversions: two plain products take half its time
    # where the scores of a head still fit into the cache (2 cores with AMX, forward and backward, torch 2.13).
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[1] <= CPU_PLAIN_LENGTH:
        return plain_attention(query, key, value)
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        enable_gqa=key.shape[2] != query.shape[2],
    )
    return mixed.transpose(1, 2).flatten(2)


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`causal_attention` as two batched products; the queries that share a key head stand below one another."""
    rows, length, heads, head_dim = query.shape
    key_heads, group = key.shape[2], heads // key.shape[2]
    query = query.unflatten(2, (key_heads, group)).permute(0, 2, 3, 1, 4).reshape(-1, group * length, head_dim)
    key = key.permute(0, 2, 3, 1).reshape(-1, head_dim, length)
    value = value.transpose(1, 2).reshape(-1, length, head_dim)
    future = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    weights = torch.baddbmm(future.repeat(group, 1), query, key, alpha=head_dim**-0.5).softmax(dim=-1)
    mixed = torch.bmm(weights, value).view(rows, key_heads, group, length, head_dim)
    return mixed.permute(0, 3, 1, 2, 4).reshape(rows, length, heads * head_dim)


def loss_sum(
    hidden: Tensor, head: Tensor, labels: Tensor, chunk_tokens: int | None = None, pad: bool = False
) -> Tensor:
    """Summed cross-entropy of the head's logits, a scalar in fp32: the caller divides once, by all counted tokens.

    `hidden` (..., width), `head` (vocabulary, width), `labels` (...) with -100 = not counted. With `chunk_tokens` the
    logits of only so many tokens exist at a time, and the gradients are made on the way; the value is the same.
    `pad` adds rows of zeros to the head up to a multiple of 64 and cuts their logits off again.
    """
    hidden, labels = hidden.flatten(0, -2), labels.flatten().long()
    if chunk_tokens is not None:
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, head = hidden.to(dtype), head.to(dtype)
        if torch.is_grad_enabled():
            return ChunkedLossSum.apply(hidden, head, labels, chunk_tokens, pad)
        return chunked_loss(hidden, padded(head, pad), labels, chunk_tokens, head.shape[0])
    logits = F.linear(hidden, padded(head, pad))[:, : head.shape[0]]
    return F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=NOT_COUNTED)


def padded(head: Tensor, pad: bool) -> Tensor:
    """The head with rows of zeros added up to a multiple of 64, if asked."""
    missing = -head.shape[0] % VOCAB_MULTIPLE if pad else 0
    return F.pad(head, (0, 0, 0, missing)) if missing else head


def chunked_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    chunk_tokens: int,
    vocabulary: int,
    use: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The loss sum chunk by chunk; `use(start, gradient)` is given the gradient of each chunk's logits."""
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, hidden.shape[0], chunk_tokens):
        ids = labels[start : start + chunk_tokens]
        counted = ids != NOT_COUNTED
        ids = torch.where(counted, ids, 0)[:, None]
        logits = F.linear(hidden[start : start + chunk_tokens], head)[:, :vocabulary].float()
        log_sum = logits.logsumexp(dim=1, keepdim=True)
        total = total + torch.where(counted[:, None], log_sum - logits.gather(1, ids), 0.0).sum()
        if use is not None:
            gradient = logits.sub_(log_sum).exp_()
            gradient.scatter_add_(1, ids, torch.full_like(log_sum, -1.0))
            use(start, gradient.mul_(counted[:, None]))
    return total


class ChunkedLossSum(torch.autograd.Function):
    """The loss head that never holds all logits: both gradients are made in the forward, so nothing is recomputed."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, chunk_tokens: int, pad: bool) -> Tensor:
        wide = padded(head, pad)
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros(wide.shape, dtype=torch.float32, device=head.device)

        def use(start: int, gradient: Tensor) -> None:
            gradient = F.pad(gradient.to(hidden.dtype), (0, wide.shape[0] - head.shape[0]))
            hidden_gradient[start : start + chunk_tokens] = gradient @ wide
            rows = hidden[start : start + chunk_tokens]
            if head.dtype == torch.float32:
                head_gradient.addmm_(gradient.t(), rows)
            else:
                head_gradient.add_(gradient.t() @ rows)

        total = chunked_loss(hidden, wide, labels, chunk_tokens, head.shape[0], use)
        ctx.save_for_backward(hidden_gradient, head_gradient[: head.shape[0]])
        ctx.head_dtype = head.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        to_hidden = hidden_gradient * gradient.to(hidden_gradient.dtype)
        return to_hidden, (head_gradient * gradient).to(ctx.head_dtype), None, None, None


def without_bias(width_in: int, width_out: int) -> nn.Linear:
    """A plain matrix, kept (out, in)."""
    return nn.Linear(width_in, width_out, bias=False)


class Decoder(nn.Module):
    """The frame of every family: configuration checked, blocks run, head applied."""

    base: ClassVar[str]  # the prefix of every parameter but the head's
    architecture: ClassVar[str]  # the Hugging Face class that loads what we write
    residual: ClassVar[tuple[str, ...]]  # endings of the matrices that write into the residual stream
    shape: ClassVar[tuple[str, ...]]  # fields that a recipe must give, unless by `depth`
    fields: ClassVar[frozenset[str]]  # fields of the Hugging Face config that are obeyed
    fixed: ClassVar[dict[str, tuple[Any, ...]]]  # fields that are known with these values only

    def __init__(self, config: Any) -> None:
        super().__init__()
        for field, allowed in self.fixed.items():
            value = getattr(config, field, allowed[0])
            if value not in allowed:
                shown = " or ".join(repr(each) for each in allowed)
                raise UsageError(f"model.{field} = {value!r} is not built for {config.model_type}: only {shown} is")
        self.config = config
        self.checkpointing = False  # True: blocks keep only their input and run again in the backward
        self.logits_limits = {compiled: logits_limit(device_bytes(), compiled) for compiled in (False, True)}

    @staticmethod
    def at_depth(depth: int, given: dict[str, Any]) -> dict[str, Any]:
        """The fields that `depth: N` stands for, beside those given."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """The residual blocks, in order: the units of activation checkpointing and sharding."""
        raise NotImplementedError

    def run_blocks(self, hidden: Tensor, *extra: Tensor) -> Tensor:
        """Passes `hidden` (rows, length, width) through all blocks."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(with_present_weights(block), hidden, *extra, use_reentrant=False)
            else:
                hidden = block(hidden, *extra)
        return hidden

    def apply_head(self, hidden: Tensor, head: Tensor, labels: Tensor | None, chunk_tokens: int | None) -> Tensor:
        """Logits, or the loss sum when there are labels; `chunk_tokens` None takes the rule, 0 never chunks."""
        if labels is None:
            return F.linear(hidden, head)
        if chunk_tokens is None:
            limit = self.logits_limits[torch.compiler.is_compiling()]
            chunk_tokens = head_chunk(labels.numel(), head.shape[0], limit)
        pad = hidden.is_cuda and torch.compiler.is_compiling()  # eager, the copy costs more than it brings
        return loss_sum(hidden, head, labels, chunk_tokens or None, pad)

    def check_length(self, ids: Tensor) -> None:
        """Refuses rows longer than the model's positions."""
        positions = self.config.max_position_embeddings
        if ids.shape[1] > positions:
            raise UsageError(f"a row of {ids.shape[1]} tokens is longer than the model's {positions} positions")


def head_chunk(tokens: int, vocabulary: int, limit: int) -> int:
    """Tokens per chunk of the loss head, 0 for all at once: chunks cost time, so only where memory asks for them."""
    return CHUNK_TOKENS if tokens > CHUNK_TOKENS and tokens * vocabulary > limit else 0


def device_bytes() -> int:
    """Memory of the present CUDA device, 0 without one."""
    if not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def with_present_weights(block: nn.Module) -> Callable[..., Tensor]:
    """The block bound to the weights it has now, if they were put in by `functional_call`.

    A checkpointed block runs again in the backward, when `functional_call` has long put the masters back.
    """
    present: dict[str, Tensor] = {**dict(block.named_parameters())}
    if all(isinstance(weight, nn.Parameter) for weight in present.values()):
        return block
    return lambda *inputs: functional_call(block, present, inputs)


def require_positive(config: Any, names: Iterable[str]) -> None:
    """Refuses sizes that are not whole numbers above zero."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"model.{name} = {value!r} must be a whole number above 0")


def require_multiple(config: Any, name: str, divisor: str) -> None:
    """Refuses a size that the other does not divide."""
    value, by = getattr(config, name), getattr(config, divisor)
    if value % by:
        raise UsageError(f"model.{name} = {value} is not a multiple of model.{divisor} = {by}: change one of them")
