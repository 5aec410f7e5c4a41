"""In which numbers the loss is computed, on which device, and how the decoder is run in them."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from autog.errors import UsageError
from autog.recipe import Recipe

TOKENS_FOR_A_CPU = 20_000_000


def choose_precision(wanted: str, device: torch.device) -> str:
    """`auto` is bf16 on CUDA and on CPUs with AMX, else fp32; bf16 is refused where it does not exist."""
    cuda_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if wanted == "auto":
        return "bf16" if cuda_bf16 or (device.type == "cpu" and has_amx()) else "fp32"
    if wanted == "bf16" and device.type == "cuda" and not cuda_bf16:
        raise UsageError(f"train.precision = bf16: {torch.cuda.get_device_name(device)} has no bf16; use fp32")
    return wanted


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in tiles."""
    return bool(torch.cpu._is_amx_tile_supported())


def choose_compile(wanted: str | bool, device: torch.device, say: Callable[[str], None]) -> bool:
    """`auto` compiles on CUDA if there is a compiler and says so if not; `true` refuses instead."""
    if wanted is False or (wanted == "auto" and device.type != "cuda"):
        return False
    if any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return True
    remedy = "torch.compile needs a C compiler and finds none (apt install gcc, or set CC)"
    if wanted is True:
        raise UsageError(f"train.compile = true: {remedy}; or set train.compile=false")
    say(f"{remedy}: training without it, slower")
    return False


class Loss(nn.Module):
    """The summed loss of rows, in the run's precision: what is compiled, wrapped and called by the loop."""

    def __init__(self, decoder: nn.Module, precision: str, device: torch.device) -> None:
        super().__init__()
        self.decoder = decoder
        self.autocast = precision == "bf16" and device.type == "cuda"
        # Eager CPU autocast is slower than fp32; bf16 copies of the fp32 masters are the fast way (measured).
        self.copies = precision == "bf16" and device.type != "cuda"

    def forward(self, rows: Tensor) -> Tensor:
        """rows: (n, sequence_length + 1) int64 -> the sum over all n * sequence_length targets, a scalar in fp32."""
        ids, labels = rows[:, :-1], rows[:, 1:]
        if self.copies:
            low = {name: parameter.to(torch.bfloat16) for name, parameter in self.decoder.named_parameters()}
            return torch.func.functional_call(self.decoder, low, (ids, labels))
        with torch.autocast("cuda", torch.bfloat16, enabled=self.autocast):
            return self.decoder(ids, labels)


def refuse_unseen_card(recipe: Recipe, insist: bool) -> None:
    """UsageError if a large run would go to the CPU although an NVIDIA card is in the machine that torch cannot see."""
    if insist or torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU"):
        return
    cards = Path("/proc/driver/nvidia/gpus")
    if recipe.tokens > TOKENS_FOR_A_CPU and cards.is_dir() and any(cards.iterdir()):
        raise UsageError(
            "an NVIDIA card is in this machine, but torch does not see it (driver too old for this torch, or "
            f"CUDA_VISIBLE_DEVICES hides it), and {recipe.tokens:,} tokens are much for a CPU: update the driver, or "
            "insist with --cpu"
        )


def keep_freed_memory(device: torch.device) -> None:
    """Makes glibc keep the memory that a CPU step frees, for the next step.

    It would give every large tensor back to the kernel and fault it in anew: measured, that costs a fifth of an fp32
    step and half of a bf16 one. The constants are M_MMAP_MAX and M_TRIM_THRESHOLD of mallopt(3).
    """
    if device.type == "cpu" and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-4, 0)
            mallopt(-1, -1)


def measured_tflops(device: torch.device, precision: str, seconds: float) -> float:
    """TFLOP/s of a large matrix product on this device: the yardstick where no published peak is known."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    a @ b
    synchronize(device)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
