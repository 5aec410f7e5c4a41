"""Writing checkpoints and reading them back: weights, optimizer and a state of a few numbers, each file checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from autog.errors import AutogError
from autog.hooks import pause
from autog.models import Decoder, state_for_disk, write_config
from autog.recipe import CheckpointPolicy
from autog.runs import (
    Checkpoint,
    Run,
    checkpoint_name,
    checkpoints,
    fsync_directory,
    to_json,
    write_durably,
    write_manifest,
)
from autog.tokens import Tokenizer

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece on the CPU, whether it was sharded over processes or not; all processes take part."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """AdamW's moments and counts as `<parameter>.<moment>`."""
    tensors = {}
    for name, parameter in named.items():
        for moment, value in optimizer.state.get(parameter, {}).items():
            if moment in MOMENTS:
                tensors[f"{name}.{moment}"] = whole(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], path: Path) -> None:
    """Puts saved moments back in place; AutogError if any is missing or does not fit."""
    tensors = load_file(path)
    for name, parameter in named.items():
        state = {}
        for moment in MOMENTS:
            key = f"{name}.{moment}"
            if key not in tensors:
                raise AutogError(f"{path} lacks {key}: it is not of this model")
            value = tensors.pop(key)
            if moment == "step":
                state[moment] = value.to(parameter.device)
                continue
            if value.shape != parameter.shape:
                raise AutogError(f"{path}: {key} is {tuple(value.shape)}, the model's is {tuple(parameter.shape)}")
            state[moment] = like(value, parameter)
        optimizer.state[parameter] = state
    if tensors:
        raise AutogError(f"{path} holds {next(iter(tensors))}, which the model does not know")


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor laid out as a parameter is: on its device, in its shards."""
    value = value.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value.clone(memory_format=torch.preserve_format)


def save_checkpoint(
    run: Run,
    step: int,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer | None,
    tokenizer: Tokenizer,
    state: dict[str, Any],
    writes: bool,
) -> Path | None:
    """Writes `step-NNNNNN/` so that it is there whole or not at all; without optimizer it cannot be resumed from.

    Every process must call it (shards are gathered); only the one that `writes` touches the disk.
    """
    weights = {name: whole(tensor) for name, tensor in state_for_disk(decoder).items()}
    named = {name.removeprefix("_orig_mod."): parameter for name, parameter in decoder.named_parameters()}
    moments = optimizer_tensors(optimizer, dict(named)) if optimizer is not None else None
    if not writes:
        return None
    target = run.directory / checkpoint_name(step)
    partial = run.directory / f".partial-{target.name}"
    try:
        write_files(partial, decoder, weights, moments, tokenizer, {**state, "saved_at": now()}, run)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise AutogError(
            f"checkpoint {target} could not be written ({error.strerror or error}): free some space and repeat the "
            "command; it goes on from the checkpoint before"
        ) from None
    partial.rename(target)
    pause("save")
    fsync_directory(run.directory)
    return target


def write_files(
    directory: Path,
    decoder: Decoder,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor] | None,
    tokenizer: Tokenizer,
    state: dict[str, Any],
    run: Run,
) -> None:
    """Every file of a checkpoint, durably, the manifest last."""
    shutil.rmtree(directory, ignore_errors=True)
    training = directory / "training"
    training.mkdir(parents=True)
    config: Any = decoder.config
    write_config(config, directory)
    tokenizer.save(directory)
    write_durably(directory / "generation_config.json", to_json(generation_config(tokenizer)))
    pause("save")
    save_tensors(weights, directory / "model.safetensors")
    pause("save")
    if moments is not None:
        save_tensors(moments, training / "optimizer.safetensors")
    write_durably(training / "state.json", to_json(state))
    write_durably(training / "recipe.yaml", (run.directory / "recipe.yaml").read_bytes())
    pause("save")
    write_manifest(directory)
    pause("save")
    fsync_directory(training)
    fsync_directory(directory)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file on disk; OSError when there is no room (safetensors has an error of its own for it)."""
    from safetensors import SafetensorError

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    path.chmod(0o644)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers' generate needs to know of the special tokens."""
    bos = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.end_id
    return {"bos_token_id": bos, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.end_id}


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def retain(run: Run, policy: CheckpointPolicy, best_step: int | None, tell: Callable[[str], None]) -> None:
    """Removes old checkpoints: the last `keep` regular ones, the best and the newest other one stay; never fewer
    than two that verify."""
    if policy.keep == "all":
        return
    found = checkpoints(run.directory)
    regular = [item for item in found if item.step % policy.every == 0]
    others = [item for item in found if item.step % policy.every]
    keep = {item.step for item in [*regular[: policy.keep], *others[:1], *found[:1]]}
    if best_step is not None:
        keep.add(best_step)
    doomed = [item for item in found if item.step not in keep]
    if not doomed:
        return
    if sum(run.verifies(item) for item in found[:3] if item.step in keep) < 2:
        tell("older checkpoints stay: fewer than two of the newer ones verify")
        return
    for item in doomed:
        trash = item.path.with_name(f".trash-{item.path.name}")
        try:
            item.path.rename(trash)
            shutil.rmtree(trash)
        except OSError as error:
            tell(f"{item.path} could not be removed ({error.strerror}): training goes on")


def newest_verified(run: Run) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to resume from, and what had to be set aside to find it."""
    refused: list[str] = []
    return run.latest(refused), refused
