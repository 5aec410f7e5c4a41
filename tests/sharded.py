"""Run by torchrun with two processes: FSDP2's `fully_shard` on CPUs, saved whole and put back in shards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from autog.models import build, initialise, make_config
from autog.recipe import Optimizer
from autog.training.checkpoint import optimizer_tensors, restore_optimizer, save_tensors, whole
from autog.training.optim import build_optimizer

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def shard(seed: int) -> torch.nn.Module:
    """A decoder split over the processes, block by block."""
    decoder = build(make_config(MODEL, 100, 16))
    initialise(decoder, seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in decoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh)
    return decoder


def train(decoder: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """A few updates on rows that depend on the process."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        rows = torch.randint(0, 100, (2, 17), generator=generator)
        decoder(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    settings = Optimizer(learning_rate=1e-2)
    first = shard(seed=0)
    optimizer = build_optimizer(first, settings)
    train(first, optimizer, 3)
    weights = {name: whole(value) for name, value in first.state_dict().items()}
    moments = optimizer_tensors(optimizer, dict(first.named_parameters()))
    if dist.get_rank() == 0:
        save_tensors(moments, folder / "optimizer.safetensors")
    dist.barrier()
    second = shard(seed=1)
    restored = build_optimizer(second, settings)
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            from autog.training.checkpoint import like

            parameter.copy_(like(weights[name], parameter))
    restore_optimizer(restored, dict(second.named_parameters()), folder / "optimizer.safetensors")
    train(first, optimizer, 2)
    train(second, restored, 2)
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters()):
        assert torch.equal(whole(ours), whole(theirs)), name
    print("equal", flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process whose peer has just left; what was to be shown is shown


if __name__ == "__main__":
    main(Path(sys.argv[1]))
