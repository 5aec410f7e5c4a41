"""The processes of a run: which one this is, on which device, and how they agree."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, KwargsHandler

from autog.errors import AutogError, UsageError

GROUP_TIMEOUT = timedelta(minutes=30)


@dataclass
class World:
    """This process among its peers."""

    accelerator: Accelerator
    group: Any  # a gloo group for decisions that are taken on the CPU; None alone

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def size(self) -> int:
        return self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def local_main(self) -> bool:
        """Whether this process starts the fillers of its machine."""
        return self.accelerator.local_process_index == 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def sharded(self) -> bool:
        """Whether the processes split one model (FSDP2) instead of each holding it."""
        return self.size > 1 and self.accelerator.distributed_type == DistributedType.FSDP

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process raised it."""
        if self.group is None:
            return list(flags)
        values = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return [bool(value) for value in values.tolist()]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on its own device."""
        if self.group is None:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """The smallest of all processes' numbers."""
        if self.group is None:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, op=dist.ReduceOp.MIN, group=self.group)
        return int(box.item())

    def share(self, value: Any) -> Any:
        """What the main process holds, given to all."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.group is not None:
            dist.barrier(group=self.group)

    @contextlib.contextmanager
    def main_first(self) -> Generator[bool]:
        """Runs a block in the main process; its failure is every process's failure, with the same message."""
        failure: BaseException | None = None
        if self.main:
            try:
                yield True
            except Exception as error:
                failure = error
        else:
            yield False
        kind, message = self.share((type(failure), str(failure)))
        if failure is not None:
            raise failure
        if kind is not type(None):
            raise (kind if issubclass(kind, AutogError) else AutogError)(message)

    def close(self) -> None:
        """Leaves the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def start_world(cpu: bool, trackers: tuple[str, ...] = (), directory: Path | None = None) -> World:
    """Joins the other processes, if the launcher started any; UsageError if the machine is not fit for it."""
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    cpu = cpu or sys.platform == "darwin"  # mps lacks the float64 of the records and has not been tried
    if cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
    handlers: list[KwargsHandler] = [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        InitProcessGroupKwargs(timeout=GROUP_TIMEOUT),
    ]
    try:
        accelerator = Accelerator(
            mixed_precision="no",
            cpu=cpu,
            kwargs_handlers=handlers,
            log_with=list(trackers) or None,
            project_dir=directory,
        )
    except (ValueError, ImportError) as error:
        if not trackers:
            raise
        raise UsageError(f"--track {' '.join(trackers)}: {error}") from None
    if accelerator.num_processes != expected:
        raise UsageError(
            f"the launcher started {expected} processes, but this one is alone: without a GPU set "
            "ACCELERATE_USE_CPU=true, or use autog's own --accelerate-config cpu_pair"
        )
    die_with_launcher(expected)
    group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT) if accelerator.num_processes > 1 else None
    return World(accelerator, group)


def die_with_launcher(processes: int) -> None:
    """Ties a worker's life to its launcher's, so that killing the launcher leaves nothing behind."""
    if processes > 1 and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Signals:
    """SIGINT and SIGTERM ask for a save and an orderly end; the same signal a second time ends at once."""

    def __init__(self) -> None:
        self.deferred = False  # until training begins there is nothing to save: a signal ends at once
        self.received: list[int] = []
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, _: object) -> None:
        """Remembers a signal. A launcher passes Ctrl-C on as SIGTERM: another kind is not a second wish."""
        if not self.deferred:
            raise KeyboardInterrupt
        if number in self.received:
            os._exit(130 if number == signal.SIGINT else 143)
        self.received.append(number)
        os.write(2, b"\nstopping after the step in hand, then saving; once more to leave at once\n")

    @property
    def stop(self) -> bool:
        return bool(self.received)
