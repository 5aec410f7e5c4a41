"""Row number -> (source, row of that source), in closed form; and the batches that follow from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from autog.data.store import TokenStore
from autog.errors import UsageError
from autog.recipe import CYCLE_ROWS

WINDOW_ROWS = 4096
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Base:
    """From which row a mixture counts, and what each source had used by then: a branch takes its parent's."""

    row: int = 0
    used: dict[str, int] = field(default_factory=dict)


START = Base()


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014) on uint64 arrays."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def window_order(seed: int, source: str, epoch: int, window: int, size: int) -> np.ndarray:
    """The order of the rows of a window: (size,) int64, by sorting keyed hashes of their numbers."""
    purpose = f"autog order {seed} {source} {epoch} {window}".encode()
    key = np.uint64(int.from_bytes(hashlib.blake2b(purpose, digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        return np.argsort(splitmix64(splitmix64(np.arange(size, dtype=np.uint64)) ^ key), kind="stable")


def interleave(quotas: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One cycle, each source within one row of its share in every prefix (Tijdeman, The chairman assignment problem,
    1980): the source of each place, and how many rows of that source came before it."""
    quota, cycle = np.array(quotas, dtype=np.int64), sum(quotas)
    sharpness = max(1, 2 * len(quotas) - 2)
    owner, before = np.zeros(cycle, dtype=np.int64), np.zeros(cycle, dtype=np.int64)
    used = np.zeros(len(quotas), dtype=np.int64)
    for place in range(cycle):
        lag = sharpness * (quota * (place + 1) - cycle * used)
        patience = np.where(lag >= cycle, ((sharpness - 1) * cycle - lag) / quota, np.inf)
        chosen = int(np.argmin(patience))
        owner[place], before[place] = chosen, used[chosen]
        used[chosen] += 1
    return owner, before


class Mixture:
    """A weighted mixture of token stores: batch i is a pure function of the recipe and i."""

    def __init__(self, stores: dict[str, TokenStore], quotas: dict[str, int], seed: int, base: Base = START) -> None:
        """quotas: rows per cycle of 1,000 of each trained source; they sum to 1,000."""
        assert sum(quotas.values()) == CYCLE_ROWS
        self.names = [name for name, quota in quotas.items() if quota]
        self.stores = [stores[name] for name in self.names]
        self.quotas = np.array([quotas[name] for name in self.names], dtype=np.int64)
        self.length = self.stores[0].length
        self.seed = seed
        self.base = base
        self.used = np.array([base.used.get(name, 0) for name in self.names], dtype=np.int64)
        self.owner, self.before = interleave(self.quotas.tolist())
        self.orders: dict[tuple[int, int, int, int], np.ndarray] = {}

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global row numbers (n,) -> (index of the source, number of the row among that source's own rows)."""
        cycle, place = np.divmod(rows - self.base.row, CYCLE_ROWS)
        source = self.owner[place]
        return source, self.used[source] + cycle * self.quotas[source] + self.before[place]

    def rows_used(self, row: int) -> dict[str, int]:
        """How many rows of each source come before a global row, the base's included."""
        cycles, place = divmod(row - self.base.row, CYCLE_ROWS)
        inside = np.bincount(self.owner[:place], minlength=len(self.names))
        return dict(zip(self.names, (self.used + cycles * self.quotas + inside).tolist()))

    def tokens_used(self, row: int) -> dict[str, int]:
        """Tokens of each source trained on before a global row, counted from the base."""
        rows = self.rows_used(row)
        return {name: (rows[name] - self.base.used.get(name, 0)) * self.length for name in self.names}

    def base_at(self, row: int) -> Base:
        """The base of a branch that starts at a global row."""
        return Base(row, self.rows_used(row))

    def missing(self, first: int, stop: int) -> list[str]:
        """Names of the sources whose rows for the global rows [first, stop) are not all in their stores yet."""
        before, after = self.rows_used(first), self.rows_used(stop)
        late = []
        for name, store in zip(self.names, self.stores):
            if after[name] == before[name]:
                continue
            if store.done:
                refuse_short(name, store)
                continue
            windows = (after[name] - 1) // WINDOW_ROWS + 1
            if store.rows("train") < windows * WINDOW_ROWS:
                store.refresh()
                if store.done:
                    refuse_short(name, store)
                elif store.rows("train") < windows * WINDOW_ROWS:
                    late.append(name)
        return late

    def place(self, source: int, number: int) -> int:
        """The row of the store that a source's n-th row is: windows shuffled, epoch after epoch."""
        store = self.stores[source]
        epoch, available = 0, None
        if store.done:
            available = store.rows("train")
            epoch, number = divmod(number, available)
        window, inside = divmod(number, WINDOW_ROWS)
        size = WINDOW_ROWS if available is None else min(WINDOW_ROWS, available - window * WINDOW_ROWS)
        key = (source, epoch, window, size)
        if key not in self.orders:
            if len(self.orders) > 4 * len(self.names):
                self.orders.pop(next(iter(self.orders)))
            self.orders[key] = window_order(self.seed, self.names[source], epoch, window, size)
        return window * WINDOW_ROWS + int(self.orders[key][inside])

    def batch(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Ids of global rows: (n, sequence_length + 1); their last column is only ever a target."""
        sources, numbers = self.locate(rows)
        if out is None:
            widest = max((np.dtype(store.manifest["dtype"]) for store in self.stores), key=lambda kind: kind.itemsize)
            out = np.empty((len(rows), self.length + 1), dtype=widest)
        for line, (source, number) in enumerate(zip(sources.tolist(), numbers.tolist())):
            out[line] = self.stores[source].row("train", self.place(source, number))
        return out

    def epochs(self, row: int) -> dict[str, float | None]:
        """How often each source was gone through before a global row; None while its size is not known."""
        used = self.rows_used(row)
        return {
            name: used[name] / store.rows("train") if store.done else None
            for name, store in zip(self.names, self.stores)
        }


def refuse_short(name: str, store: TokenStore) -> None:
    """UsageError if a source that ended does not hold a single row."""
    if store.rows("train") == 0:
        raise UsageError(
            f"source {name!r} ended after {store.tokens('train')} training tokens, less than one row of "
            f"{store.length} + 1: give it more text, a shorter data.sequence_length, or weight 0"
        )


def step_rows(step: int, rows_per_step: int, micro_batch: int, rank: int, world: int) -> list[np.ndarray]:
    """The global rows of a rank's micro-batches in a step: micro-batch m of rank r is block m * world + r."""
    first = step * rows_per_step
    blocks = rows_per_step // micro_batch
    return [
        np.arange(first + block * micro_batch, first + (block + 1) * micro_batch, dtype=np.int64)
        for block in range(rank, blocks, world)
    ]
