"""Loss on held-out rows: per source and mixed, always the same rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from autog.data.mixture import Mixture
from autog.data.store import TokenStore
from autog.tokens import Tokenizer
from autog.training.feeder import Feeder
from autog.training.world import World


class Validation:
    """The validation rows of every source, fixed by the recipe, and how they are scored."""

    def __init__(
        self, stores: dict[str, TokenStore], wanted: dict[str, int], shares: dict[str, int], tokenizer: Tokenizer
    ) -> None:
        """wanted: rows per source; shares: rows per 1,000 of the training mixture, the weights of `mixed`."""
        self.stores, self.wanted, self.shares = stores, wanted, shares
        self.bytes_per_token = tokenizer.bytes_per_token()
        self.rows: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def wait(self, still_waiting: Callable[[list[str]], bool]) -> None:
        """Returns, on all processes at once, when every source has its rows or ended with fewer.

        `still_waiting` is told the late ones of this process and says whether any process has some.
        """
        if self.rows:
            return
        while still_waiting([name for name in self.wanted if not self.complete(name)]):
            time.sleep(0.1)
        for name, wanted in self.wanted.items():
            self.rows[name] = min(wanted, self.stores[name].rows("val"))
            self.bytes[name] = self.target_bytes(name)

    def complete(self, name: str) -> bool:
        """Whether a source's rows are all there."""
        store = self.stores[name]
        store.refresh()
        return store.done or store.rows("val") >= self.wanted[name]

    def target_bytes(self, name: str) -> int:
        """Bytes of text that the targets of a source's rows stand for."""
        rows = (self.stores[name].row("val", number)[1:] for number in range(self.rows[name]))
        return int(sum(self.bytes_per_token[row].sum() for row in rows))

    def unigram_entropy(self) -> float | None:
        """Nats per token of the best guess without context, on the mixture's validation rows: their own frequencies."""
        counts = np.zeros(len(self.bytes_per_token))
        for name, rows in self.rows.items():
            if rows and self.shares.get(name):
                ids = np.concatenate([self.stores[name].row("val", number)[1:] for number in range(rows)])
                counts += np.bincount(ids, minlength=len(counts)) * (self.shares[name] / len(ids))
        shares = counts[counts > 0] / counts.sum() if counts.any() else np.zeros(0)
        return float(-(shares * np.log(shares)).sum()) if len(shares) else None

    @property
    def empty(self) -> list[str]:
        """Sources that have no validation rows."""
        return [name for name, rows in self.rows.items() if rows == 0]

    @torch.no_grad()
    def measure(self, loss: nn.Module, eager: nn.Module, world: World, micro_batch: int) -> dict[str, Any]:
        """Loss, perplexity and bits per byte of every source and of the mixture."""
        was_training = eager.training
        loss.eval()
        names = [name for name in self.rows if self.rows[name]]
        sums = torch.zeros(len(names), dtype=torch.float64, device=world.device)
        for index, name in enumerate(names):
            sums[index] = self.source_sum(name, loss, eager, world, micro_batch)
        sums = world.sum(sums).cpu()
        loss.train(was_training)
        totals = dict(zip(names, sums.tolist()))
        length = next(iter(self.stores.values())).length
        finite = {name: value for name, value in totals.items() if math.isfinite(value)}
        losses = {name: value / (self.rows[name] * length) for name, value in finite.items()}
        bits = {name: value / math.log(2) / max(1, self.bytes[name]) for name, value in finite.items()}
        return self.report(losses, bits)

    def source_sum(self, name: str, loss: nn.Module, eager: nn.Module, world: World, micro_batch: int) -> torch.Tensor:
        """This process's part of a source's summed loss; all processes make the same number of forwards."""
        rows, store = self.rows[name], self.stores[name]
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        for first in range(0, rows, micro_batch * world.size):
            start = first + world.rank * micro_batch
            numbers = range(start, min(start + micro_batch, rows)) or range(1)
            ids = np.stack([store.row("val", number) for number in numbers])
            batch = torch.from_numpy(Feeder.as_torch(ids)).to(world.device).to(torch.int64)
            # A short last batch would make the compiled graph compile again for its shape.
            part = (loss if len(numbers) == micro_batch else eager)(batch)
            if start < rows:
                total += part.double()
        return total

    def report(self, losses: dict[str, float], bits: dict[str, float]) -> dict[str, Any]:
        """Adds the mixture (weights of the trained sources, renormalised) and null for sources without rows."""
        weights = {name: self.shares.get(name, 0) for name in losses}
        total = sum(weights.values())
        mixed = {
            kind: sum(weights[name] * values[name] for name in losses) / total if total else None
            for kind, values in (("loss", losses), ("bits", bits))
        }
        missing = dict.fromkeys(name for name in self.rows if name not in losses)
        if len(missing) > len(self.empty):
            mixed = {"loss": None, "bits": None}  # a loss that is not finite has no mean
        every = {**losses, **missing, "mixed": mixed["loss"]}
        return {
            "loss": every,
            "perplexity": {name: None if value is None else math.exp(min(value, 700)) for name, value in every.items()},
            "bits_per_byte": {**bits, **missing, "mixed": mixed["bits"]},
        }


def validation_for(
    mixture: Mixture, stores: dict[str, TokenStore], wanted: dict[str, int], tokenizer: Tokenizer
) -> Validation:
    """The validation of a run, weighted as its mixture is."""
    return Validation(stores, wanted, dict(zip(mixture.names, mixture.quotas.tolist())), tokenizer)
