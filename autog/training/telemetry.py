"""What a run says about itself: throughput, MFU, memory, energy; into its files and onto the screen."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from autog.plan import flops_per_token, peak_tflops
from autog.training.precision import measured_tflops

PACKAGES = (
    "autog",
    "torch",
    "accelerate",
    "transformers",
    "datasets",
    "tokenizers",
    "tiktoken",
    "safetensors",
    "numpy",
)
GEMM_SECONDS = {"cuda": 2.0, "cpu": 0.3}
WARMUP_STEPS = 10


class Stopwatch:
    """Time spent training: device events on CUDA, so that nothing waits; pauses are left out."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.carried = 0.0
        self.begun: Any = None

    def mark(self) -> Any:
        """A point in time on the device."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, stop: Any) -> float:
        """Time between two marks; waits for the later one."""
        if not self.cuda:
            return stop - start
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def start(self) -> None:
        """Begins a stretch."""
        self.begun = self.mark()

    def pause(self) -> None:
        """Ends a stretch and keeps its time for the interval."""
        if self.begun is not None:
            self.carried += self.seconds(self.begun, self.mark())
            self.begun = None

    def lap(self) -> tuple[Any, Any, float]:
        """Closes an interval: its last stretch as two marks, and what pauses carried into it."""
        stop = self.mark()
        interval = (self.begun, stop, self.carried)
        self.begun, self.carried = stop, 0.0
        return interval


@dataclass
class Pending:
    """A logged step whose numbers are still on their way from the device."""

    row: dict[str, Any]
    values: torch.Tensor
    event: Any
    interval: tuple[Any, Any, float]
    steps: int
    wait_seconds: float
    settled_seconds: float  # of the interval, already in the totals since a save inside it


@dataclass
class Totals:
    """Sums over a run's whole life; they travel in the checkpoint's state."""

    train_seconds: float = 0.0
    warm_seconds: float = 0.0
    warm_steps: int = 0
    wall_seconds: float = 0.0
    energy_joules: float | None = None
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    restarts: int = 0
    peak_memory_gib: float = 0.0


@dataclass
class Device:
    """The accelerator (or CPU) of a run and the yardstick for its speed."""

    name: str
    memory_gib: float
    peak_tflops: float
    peak_source: str
    details: dict[str, Any] = field(default_factory=dict)


def describe_device(device: torch.device, precision: str, say: Callable[[str], None]) -> Device:
    """Name, memory and peak of the device; a peak that nobody published is measured, and that is said."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    else:
        import psutil

        name, memory = cpu_name(), psutil.virtual_memory().total / 2**30
    known = peak_tflops(name) if precision == "bf16" else None
    if known is not None:
        return Device(name, memory, known, "published dense bf16 peak with fp32 accumulation")
    measured = measured_tflops(device, precision, GEMM_SECONDS.get(device.type, 0.3))
    if device.type == "cuda":
        say(f"no published {precision} peak is known for {name}: MFU is against {measured:.1f} TFLOP/s measured here")
    return Device(name, memory, measured, f"measured {precision} matrix product")


def cpu_name() -> str:
    """The processor's name as the system gives it, with the threads in use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux: the platform's own word stands
    return f"{name} ({torch.get_num_threads()} threads)"


def installed(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of packages; None where one is missing."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def environment(device: Device, precision: str, processes: int, compiled: bool) -> dict[str, Any]:
    """What a reader needs to repeat the run: versions, device, drivers, command."""
    return {
        "command": ["autog", *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": installed(PACKAGES),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "device": device.name,
        "device_memory_gib": round(device.memory_gib, 2),
        "peak_tflops": round(device.peak_tflops, 2),
        "peak_source": device.peak_source,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "compile": compiled,
        "nccl_p2p_disable": os.environ.get("NCCL_P2P_DISABLE"),
    }


def driver_version() -> str | None:
    """NVIDIA's driver, where there is one."""
    return with_nvml(lambda nvml: str(nvml.nvmlSystemGetDriverVersion()))


def energy_joules(devices: int) -> float | None:
    """Energy that the visible NVIDIA cards have used since the driver was loaded; None where NVML does not say."""
    if not torch.cuda.is_available():
        return None

    def read(nvml: Any) -> float:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(devices)]
        return sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3

    return with_nvml(read)


def with_nvml(read: Callable[[Any], Any]) -> Any:
    """Runs a reading of NVML; None where there is no driver or it cannot say."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return read(pynvml)
    except pynvml.NVMLError:
        return None


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far: on the card, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


class Telemetry:
    """Collects each step's loss and norm on the device and hands out finished rows one log interval later."""

    def __init__(
        self, config: dict[str, Any], length: int, batch_tokens: int, device: torch.device, facts: Device, world: int
    ) -> None:
        self.device, self.batch_tokens, self.world = device, batch_tokens, world
        self.flops = flops_per_token(config, length)
        self.peak_flops = facts.peak_tflops * 1e12 * world
        self.stopwatch = Stopwatch(device)
        self.totals = Totals()
        self.norms: list[torch.Tensor] = []
        self.pending: Pending | None = None
        self.interval_steps = 0
        self.longest_skip = 0
        self.settled_seconds = 0.0
        self.wait_seconds = 0.0

    def step(self, norm: torch.Tensor, wait_seconds: float) -> None:
        """Notes one step's gradient norm and how long it waited for data."""
        self.norms.append(norm)
        self.interval_steps += 1
        self.wait_seconds += wait_seconds

    def log(self, row: dict[str, Any], loss: torch.Tensor) -> dict[str, Any] | None:
        """Closes an interval with the loss of its last step; gives the interval before it, now finished."""
        finished = self.flush()
        values = torch.stack([loss.double(), *(norm.double() for norm in self.norms)])
        event = None
        if self.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            values = host
        interval = self.stopwatch.lap()
        self.pending = Pending(
            row, values, event, interval, self.interval_steps, self.wait_seconds, self.settled_seconds
        )
        self.norms, self.interval_steps, self.wait_seconds, self.settled_seconds = [], 0, 0.0, 0.0
        return finished

    def settle(self, step: int) -> tuple[dict[str, Any] | None, list[int]]:
        """Reads everything back before a save, the stopwatch paused: the pending row, and which steps were skipped."""
        finished = self.flush()
        self.totals.train_seconds += self.stopwatch.carried - self.settled_seconds
        self.settled_seconds = self.stopwatch.carried
        norms = [float(norm) for norm in self.norms]
        self.norms = []
        return finished, self.count_skips(norms, step)

    def flush(self) -> dict[str, Any] | None:
        """The row that is still pending, finished; it waits for the device if it must."""
        pending, self.pending = self.pending, None
        if pending is None:
            return None
        if pending.event is not None:
            pending.event.synchronize()
        loss, *norms = pending.values.tolist()
        start, stop, carried = pending.interval
        seconds = max(1e-9, self.stopwatch.seconds(start, stop) + carried)
        skipped = self.count_skips(norms, pending.row["step"])
        self.count_time(pending, seconds)
        rate = pending.steps * self.batch_tokens / seconds
        finite = loss == loss and abs(loss) != float("inf")
        return {
            "step": pending.row["step"],
            "tokens": pending.row["tokens"],
            "loss": loss if finite else None,
            "learning_rate": pending.row["learning_rate"],
            "grad_norm": norms[-1] if is_finite(norms[-1]) else None,
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self.flops["mfu"] / self.peak_flops, 4),
            "mfu_causal": round(rate * self.flops["mfu_causal"] / self.peak_flops, 4),
            "data_wait_ms": round(pending.wait_seconds * 1e3 / pending.steps, 3),
            "memory_gib": round(memory_gib(self.device), 3),
            "seconds": round(self.totals.train_seconds, 3),
            "source_tokens": pending.row["source_tokens"],
            "skipped": skipped,
        }

    def count_time(self, pending: Pending, seconds: float) -> None:
        """Adds an interval to the totals."""
        totals = self.totals
        totals.train_seconds += seconds - pending.settled_seconds
        if pending.row["step"] - pending.steps >= WARMUP_STEPS:
            totals.warm_seconds += seconds
            totals.warm_steps += pending.steps
        totals.peak_memory_gib = max(totals.peak_memory_gib, round(memory_gib(self.device), 3))

    def count_skips(self, norms: list[float], last_step: int) -> list[int]:
        """Counts the updates that were skipped for a non-finite norm; gives their steps."""
        totals = self.totals
        for norm in norms:
            totals.skipped_in_a_row = 0 if is_finite(norm) else totals.skipped_in_a_row + 1
            totals.skipped_steps += not is_finite(norm)
            self.longest_skip = max(self.longest_skip, totals.skipped_in_a_row)
        first = last_step - len(norms) + 1
        return [first + number for number, norm in enumerate(norms) if not is_finite(norm)]


def is_finite(value: float) -> bool:
    """Neither NaN nor infinite."""
    return value == value and abs(value) != float("inf")
