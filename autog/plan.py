"""What a model will cost before anything runs: parameters, FLOPs and memory from a plain config. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Dense bf16 tensor throughput with fp32 accumulation, at the card's specified clock, in TFLOP/s. Makers print also
# the figures with 2:4 sparsity, and for consumer cards those with fp16 accumulation: both are twice these.
# The first entry whose words all stand in the device's name counts, so longer names come first; a name with a word
# of OTHER_CARDS that the entry lacks is a slower card of its own.
PEAK_TFLOPS: dict[str, float] = {
    "H200": 989.0,  # NVIDIA H200 data sheet: 1,979 with sparsity
    "H100 PCIe": 756.0,  # NVIDIA H100 data sheet: 1,513 with sparsity
    "H100": 989.0,  # NVIDIA H100 data sheet, SXM: 1,979 with sparsity
    "A100": 312.0,  # NVIDIA A100 data sheet
    "L40S": 362.0,  # NVIDIA L40S data sheet: 733 with sparsity, rounded down there to 362.05 dense
    "L20": 119.5,  # NVIDIA's figure as quoted by the trade press (tomshardware.com on H20, L20, L2)
    "RTX PRO 6000 Blackwell": 503.8,  # NVIDIA RTX Blackwell PRO architecture paper, as quoted in karpathy/nanochat#60
    "RTX 5090": 209.5,  # NVIDIA RTX Blackwell architecture paper, as quoted in karpathy/nanochat#60
    "RTX 4090": 165.2,  # NVIDIA Ada architecture paper, appendix A
    "RTX 4060 Ti": 44.1,  # scaled from the 4090 by tensor cores and clock: 165.2 x 136 / 512 x 2535 / 2520
}
OTHER_CARDS = {"d", "laptop", "max", "q", "mobile", "nvl", "super", "ti"}

BYTES_PER_ACTIVATION = {"fp32": 4, "bf16": 2}
MAXIMUM_TOKENS = {"cpu": 4096, "cuda": 65536}  # per micro-batch: beyond these a step gets no faster
CHUNK_ABOVE = 2**28  # elements of logits: half a GiB in bf16, and two to eight times that with gradients and fp32
CHUNK_TOKENS = 4096  # smaller chunks of the loss head starve its products: see pytorch#124480


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes under one set of names, whatever its family calls them."""

    vocabulary: int
    positions: int  # rows of a learned position table, 0 without one
    width: int
    layers: int
    query_width: int  # heads x head_dim
    key_width: int  # key heads x head_dim
    inner: int  # width between the matrices of the MLP
    gated: bool  # three matrices in the MLP instead of two
    biases: int  # bias elements per block
    norms: int  # elements of one norm
    tied: bool

    @property
    def block_matrices(self) -> int:
        """Elements of the matrices of one block."""
        attention = self.width * (2 * self.query_width + 2 * self.key_width)
        return attention + (3 if self.gated else 2) * self.width * self.inner


def llama_shape(config: Mapping[str, Any]) -> Shape:
    """Sizes of a Llama config."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        vocabulary=config["vocab_size"],
        positions=0,
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        query_width=heads * head_dim,
        key_width=(config.get("num_key_value_heads") or heads) * head_dim,
        inner=config["intermediate_size"],
        gated=True,
        biases=0,
        norms=config["hidden_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def gpt2_shape(config: Mapping[str, Any]) -> Shape:
    """Sizes of a GPT-2 config."""
    width = config["n_embd"]
    inner = config.get("n_inner") or 4 * width
    return Shape(
        vocabulary=config["vocab_size"],
        positions=config["n_positions"],
        width=width,
        layers=config["n_layer"],
        query_width=width,
        key_width=width,
        inner=inner,
        gated=False,
        biases=5 * width + inner,  # queries, keys, values, two projections back, the MLP's first
        norms=2 * width,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Sizes of a config of any family; KeyError for a family that is not in the table."""
    return SHAPES[config["model_type"]](config)


def parameters(config: Mapping[str, Any]) -> dict[str, int]:
    """Exact counts of elements: total, embedding (tokens), positions, blocks, head (0 where tied)."""
    shape = shape_of(config)
    table = shape.vocabulary * shape.width
    counts = {
        "embedding": table,
        "positions": shape.positions * shape.width,
        "blocks": shape.layers * (shape.block_matrices + shape.biases + 2 * shape.norms),
        "final_norm": shape.norms,
        "head": 0 if shape.tied else table,
    }
    return {"total": sum(counts.values()), **counts}


def matmul_parameters(config: Mapping[str, Any]) -> int:
    """Elements that each token is multiplied with: the blocks' matrices and the head, which counts tied or not."""
    shape = shape_of(config)
    return shape.layers * shape.block_matrices + shape.vocabulary * shape.width


def flops_per_token(config: Mapping[str, Any], sequence_length: int) -> dict[str, int]:
    """Training FLOPs per token, forward and backward, without recomputation, in the two forms that people quote.

    `mfu`: 6 x matmul parameters + 12 x layers x (heads x head_dim) x length, attention counted in full (PaLM,
    Chowdhery et al., 2022; nanoGPT, nanochat, torchtitan). `mfu_causal`: half of that for attention (llm.c).
    """
    shape = shape_of(config)
    dense = 6 * matmul_parameters(config)
    attention = 6 * shape.layers * shape.query_width * sequence_length
    return {"mfu": dense + 2 * attention, "mfu_causal": dense + attention}


def peak_tflops(device_name: str) -> float | None:
    """The table's dense bf16 peak for a device's name as CUDA gives it, None for one that it lacks."""
    words = set(device_name.replace("-", " ").lower().split())
    for name, peak in PEAK_TFLOPS.items():
        known = set(name.lower().split())
        if known <= words and not (words - known) & OTHER_CARDS:
            return peak
    return None


def logits_limit(device_bytes: int, compiled: bool) -> int:
    """The most elements of logits to hold at once on a device of so much memory (0 for a CPU); above, go by chunks.

    A compiled head holds 4 bytes for each (bf16, with gradients), an eager one 12 (bf16 and fp32): an eighth of the
    device or a little less. Never under 2^28, because chunks cost time.
    """
    return max(CHUNK_ABOVE, device_bytes // (32 if compiled else 96))


def memory_bytes(
    config: Mapping[str, Any],
    rows: int,
    sequence_length: int,
    precision: str,
    checkpointing: bool,
    *,
    compiled: bool = True,
    chunked: bool | None = None,
) -> dict[str, int]:
    """An estimate of a training step's memory for a micro-batch of `rows`, in bytes, by what holds it.

    Weights 4 bytes each (fp32 masters) and 2 more in bf16; gradients 4; AdamW 8. Activations per token and layer,
    in elements: compiled 4 x width (inputs of norms, residual) + 2 x queries (with attention's output) + 2 x keys
    + 2 (3 if gated) x inner; an eager gated model 3 x width and one more inner on top, and what is of one width stays
    fp32 in eager bf16. With checkpointing one width per layer, and one layer whole. Logits: in compute precision,
    twice (with their gradient); eager also twice in fp32; of 4,096 tokens in fp32 when chunked (default: above 2^28
    elements).
    """
    shape = shape_of(config)
    total, tokens = parameters(config)["total"], rows * sequence_length
    size = BYTES_PER_ACTIVATION[precision]
    unfused = shape.gated and not compiled  # RMSNorm, rotation and SwiGLU are chains of kernels unless compiled
    stream, dense = (7 if unfused else 4) * shape.width, 2 * (shape.query_width + shape.key_width)
    dense += (2 + shape.gated + unfused) * shape.inner
    layer = tokens * (stream * (size if compiled else 4) + dense * size)
    residual = tokens * shape.width * 4
    elements = tokens * shape.vocabulary
    if chunked is None:
        chunked = elements > CHUNK_ABOVE
    if chunked:
        logits = min(tokens, CHUNK_TOKENS) * shape.vocabulary * (4 + size) + 4 * shape.vocabulary * shape.width
    else:
        logits = elements * (2 * size if compiled else 2 * size + 8)
    return {
        "weights": total * (4 if precision == "fp32" else 6),
        "gradients": total * 4,
        "optimizer": total * 8,
        "activations": shape.layers * residual + layer if checkpointing else shape.layers * layer + residual,
        "logits": logits,
    }


def micro_batch_for(
    config: Mapping[str, Any],
    rows_per_process: int,
    sequence_length: int,
    bytes_available: int,
    *,
    device: str = "cuda",
    precision: str = "bf16",
    checkpointing: bool = False,
    compiled: bool = True,
) -> int:
    """The most rows that divide `rows_per_process`, fit into the bytes and are worth it; 1 if none does.

    `device` is cpu or cuda and says how many tokens at once still make a step faster (4,096 and 65,536).
    """
    limit = logits_limit(bytes_available if device == "cuda" else 0, compiled)
    for rows in range(rows_per_process, 1, -1):
        tokens = rows * sequence_length
        if rows_per_process % rows or tokens > MAXIMUM_TOKENS[device]:
            continue
        large = tokens * config["vocab_size"] > limit
        needed = memory_bytes(config, rows, sequence_length, precision, checkpointing, compiled=compiled, chunked=large)
        if sum(needed.values()) <= bytes_available:
            return rows
    return 1


SHAPES = {"llama": llama_shape, "gpt2": gpt2_shape}
