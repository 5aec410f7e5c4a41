"""What the planner promises: exact counts, the two MFU forms, and a micro-batch that fits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from autog import models, plan

# The shapes of five published models and of GPT-2, with the counts of their cards.
AUTO_G = {
    "model_type": "llama",
    "num_hidden_layers": 24,
    "hidden_size": 1792,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 5376,
    "vocab_size": 50257,
}
L20_EDU = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SMALL_EN_IT = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 64000}
TINYSTORIES = SMALL_EN_IT | {"vocab_size": 50257}
PUBLISHED = [
    (AUTO_G, 1024, 1_050_002_688),
    (L20_EDU, 2048, 134_515_008),
    (SMALL_EN_IT, 2500, 136_128_000),
    (TINYSTORIES, 1024, 124_439_808),
]


def planned(model: dict[str, Any], length: int) -> dict[str, Any]:
    return models.make_config(model, model["vocab_size"], length).to_dict()


@pytest.mark.parametrize(("model", "length", "count"), PUBLISHED)
def test_the_counts_of_published_models_come_out_exactly(model: dict[str, Any], length: int, count: int) -> None:
    counts = plan.parameters(planned(model, length))
    assert counts["total"] == count
    assert counts["total"] == sum(value for name, value in counts.items() if name != "total")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        {"model_type": "llama", "depth": 2, "num_key_value_heads": 1, "head_dim": 32},
        {"model_type": "llama", "depth": 1, "intermediate_size": 100},
        {"model_type": "gpt2", "depth": 2},
        {"model_type": "gpt2", "depth": 1, "n_inner": 100},
    ],
)
def test_planned_counts_equal_built_ones(model: dict[str, Any], tied: bool) -> None:
    config = models.make_config(model | {"tie_word_embeddings": tied}, 301, 40)
    decoder = models.build(config)
    counts = plan.parameters(config.to_dict())
    assert counts["total"] == sum(weight.numel() for weight in decoder.parameters())
    assert counts["blocks"] == sum(weight.numel() for weight in decoder.blocks.parameters())
    matrices = sum(weight.numel() for weight in decoder.blocks.parameters() if weight.ndim == 2)
    assert plan.matmul_parameters(config.to_dict()) == matrices + 301 * config.hidden_size


def test_flops_equal_what_torch_counts_in_a_real_step() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = models.make_config({"model_type": "llama", "depth": 2, "num_key_value_heads": 1}, 320, 64)
    decoder = models.build(config)
    models.initialise(decoder, 0)
    ids = torch.randint(0, 320, (2, 64))
    with FlopCounterMode(display=False) as counter:
        decoder(ids, ids).backward()
    dense = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    assert dense == 6 * plan.matmul_parameters(config.to_dict()) * ids.numel()


def test_both_forms_of_flops_are_those_people_quote() -> None:
    config = planned(TINYSTORIES, 1024)
    assert plan.matmul_parameters(config) == 12 * 12 * 768**2 + 50257 * 768
    flops = plan.flops_per_token(config, 1024)
    assert flops["mfu"] == 6 * plan.matmul_parameters(config) + 12 * 12 * 768 * 1024
    assert flops["mfu_causal"] == 6 * plan.matmul_parameters(config) + 6 * 12 * 768 * 1024
    # The 1 B model at its published 49,875 tokens/s on two cards: 31.1 % and 29.8 % of their peak.
    flops = plan.flops_per_token(planned(AUTO_G, 1024), 1024)
    peak = 2 * 503.8e12
    assert round(100 * flops["mfu"] * 49_875 / peak, 1) == 31.1
    assert round(100 * flops["mfu_causal"] * 49_875 / peak, 1) == 29.8


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L20", 119.5),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4060 Ti", 44.1),
        ("NVIDIA GeForce RTX 4060", None),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None),
        ("Intel(R) Xeon(R)", None),
    ],
)
def test_a_peak_is_the_cards_own_or_none(name: str, peak: float | None) -> None:
    assert plan.peak_tflops(name) == peak


def test_the_micro_batch_divides_fits_and_is_the_largest_that_does() -> None:
    config = planned(L20_EDU, 2048)

    def needed(rows: int) -> int:
        chunked = rows * 2048 * 49152 > plan.logits_limit(available, compiled=True)
        return sum(plan.memory_bytes(config, rows, 2048, "bf16", False, chunked=chunked).values())

    for available in (4 << 30, 12 << 30, 44 << 30, 130 << 30):
        rows = plan.micro_batch_for(config, 258, 2048, available)
        assert 258 % rows == 0 and (rows == 1 or needed(rows) <= available)
        larger = [more for more in range(rows + 1, 259) if 258 % more == 0 and more * 2048 <= 65536]
        assert all(needed(more) > available for more in larger)
    assert plan.micro_batch_for(config, 258, 2048, 1 << 50) * 2048 <= 65536
    assert plan.micro_batch_for(config, 64, 256, 1 << 50, device="cpu", precision="fp32") == 16
    assert plan.micro_batch_for(config, 7, 2048, 1 << 20) == 1


def test_memory_grows_with_rows_and_shrinks_with_checkpointing() -> None:
    config = planned(TINYSTORIES, 1024)
    few, many = (plan.memory_bytes(config, rows, 1024, "bf16", False) for rows in (4, 16))
    assert many["activations"] == 4 * few["activations"] and many["weights"] == few["weights"]
    assert plan.memory_bytes(config, 4, 1024, "bf16", True)["activations"] < few["activations"] / 3
    assert plan.memory_bytes(config, 64, 1024, "bf16", False)["logits"] < 4 * many["logits"]


@pytest.mark.parametrize("model", [{"model_type": "llama", "depth": 4}, {"model_type": "gpt2", "depth": 4}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_planned_activations_are_near_what_autograd_keeps(model: dict[str, Any], checkpointing: bool) -> None:
    config = models.make_config(model | {"tie_word_embeddings": True}, 512, 128)
    decoder = models.build(config)
    models.initialise(decoder, 0)
    decoder.checkpointing = checkpointing
    kept = {weight.untyped_storage().data_ptr(): 0 for weight in decoder.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    ids = torch.randint(0, 512, (4, 128))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder(ids, ids)
    estimate = plan.memory_bytes(config.to_dict(), 4, 128, "fp32", checkpointing, compiled=False)
    planned_bytes = estimate["activations"] + estimate["logits"] / 2  # the half is gradients, which nobody keeps
    if checkpointing:  # a layer that runs again is seen in the backward only
        whole = plan.memory_bytes(config.to_dict(), 4, 128, "fp32", False, compiled=False)
        planned_bytes -= whole["activations"] / 4
    assert 0.8 < planned_bytes / sum(kept.values()) < 1.3


def test_planning_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, autog.plan; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
