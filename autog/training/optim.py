"""Parameter groups by one list of rules, AdamW, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from autog.recipe import Optimizer, Schedule

# The first rule that fits decides: matrices and embeddings decay; norms, biases and scalars do not (GPT-2, nanoGPT).
DECAY_RULES: list[tuple[Callable[[str, Tensor], bool], bool]] = [
    (lambda name, parameter: parameter.ndim >= 2, True),
    (lambda name, parameter: True, False),
]


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Groups for AdamW: decayed and not, in a stable order, each with the names of its parameters."""
    groups: dict[bool, dict] = {
        True: {"params": [], "names": [], "weight_decay": weight_decay},
        False: {"params": [], "names": [], "weight_decay": 0.0},
    }
    for name, parameter in named:
        decays = next(decays for fits, decays in DECAY_RULES if fits(name, parameter))
        groups[decays]["params"].append(parameter)
        groups[decays]["names"].append(name)
    return [group for group in groups.values() if group["params"]]


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, which skips an update on the device where `found_inf` is 1 (a gradient scaler's hook)."""

    found_inf: Tensor | None = None


def build_optimizer(module: nn.Module, settings: Optimizer) -> AdamW:
    """AdamW over the module's parameters."""
    groups = parameter_groups(module.named_parameters(), settings.weight_decay)
    return AdamW(
        [{key: group[key] for key in ("params", "weight_decay")} for group in groups],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def cosine(progress: float, floor: float) -> float:
    """Half a cosine from 1 to `floor` (Loshchilov and Hutter, 2017)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, floor: float) -> float:
    """A straight line from 1 to `floor`."""
    return 1 - (1 - floor) * progress


def constant(progress: float, floor: float) -> float:
    """1 throughout."""
    return 1.0


def learning_rate(schedule: Schedule, peak: float, step: int, steps: int) -> float:
    """The rate of the update that follows `step` finished ones: warm-up to the peak, then down to the floor.

    The last update is made at the floor itself.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    left = max(1, steps - 1 - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / left)
    return peak * SCHEDULES[schedule.type](progress, schedule.final_share)


SCHEDULES: dict[str, Callable[[float, float], float]] = {"cosine": cosine, "linear": linear, "constant": constant}
