"""The next step's rows, fetched by a thread while this step computes."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import torch
from torch import Tensor

from autog.data.mixture import Mixture, step_rows

POLL_SECONDS = 0.05
AHEAD_STEPS = 2


class Feeder:
    """Gives out each step's micro-batches in order: int32 or uint16 rows (micro_batch, sequence_length + 1)."""

    def __init__(
        self, mixture: Mixture, rows_per_step: int, micro_batch: int, rank: int, world: int, pinned: bool
    ) -> None:
        self.mixture = mixture
        self.rows_per_step, self.micro_batch, self.rank, self.world = rows_per_step, micro_batch, rank, world
        self.pinned = pinned
        self.queue: queue.Queue[list[Tensor]] = queue.Queue(AHEAD_STEPS)
        self.closing = threading.Event()
        self.missing: list[str] = []
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None

    def start(self, first_step: int, stop_step: int) -> None:
        """Begins to fetch steps [first_step, stop_step)."""
        self.thread = threading.Thread(target=self.run, args=(first_step, stop_step), daemon=True)
        self.thread.start()

    def run(self, first_step: int, stop_step: int) -> None:
        """The thread: waits until all rows of a global step are in the stores, then maps this rank's own."""
        try:
            for step in range(first_step, stop_step):
                self.wait_for(step)
                batch = self.batches(step)
                while not self.closing.is_set():
                    try:
                        self.queue.put(batch, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if self.closing.is_set():
                    return
        except BaseException as error:  # handed to the training thread, which raises it
            self.error = error

    def wait_for(self, step: int) -> None:
        """Returns when the stores hold the step; meanwhile `missing` names what is late."""
        first = step * self.rows_per_step
        while not self.closing.is_set():
            missing = self.mixture.missing(first, first + self.rows_per_step)
            self.missing = missing
            if not missing:
                return
            time.sleep(POLL_SECONDS)

    def batches(self, step: int) -> list[Tensor]:
        """This rank's micro-batches of a step."""
        micro_batches = []
        for rows in step_rows(step, self.rows_per_step, self.micro_batch, self.rank, self.world):
            ids = torch.from_numpy(self.as_torch(self.mixture.batch(rows)))
            micro_batches.append(ids.pin_memory() if self.pinned else ids)
        return micro_batches

    @staticmethod
    def as_torch(ids: np.ndarray) -> np.ndarray:
        """uint16 travels as it is; uint32 as int32, which every device can index with."""
        return ids if ids.dtype.itemsize == 2 else ids.view(np.int32)

    @property
    def ready(self) -> bool:
        """Whether the next step can be had without waiting."""
        if self.error is not None:
            raise self.error
        return not self.queue.empty()

    def next(self) -> list[Tensor]:
        """The next step's micro-batches; call only when `ready`."""
        return self.queue.get()

    def close(self) -> None:
        """Ends the thread."""
        self.closing.set()
        if self.thread is not None:
            self.thread.join()
