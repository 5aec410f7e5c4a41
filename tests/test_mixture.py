"""What the mixture promises: exact shares, every row once per epoch, and batches that only the recipe decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import write_store

from autog.data.mixture import START, WINDOW_ROWS, Base, Mixture, interleave, step_rows
from autog.data.store import TokenStore
from autog.errors import AutogError, UsageError
from autog.recipe import shares

LENGTH = 4
WEIGHTS = st.lists(st.floats(0.02, 50), min_size=1, max_size=12)


def stores(tmp_path: Path, done: bool = True, **rows: int) -> dict[str, TokenStore]:
    """A store per source with so many rows of 4 tokens; a row's first id is 4 times its number."""
    return {name: store_of(tmp_path / name, count, done) for name, count in rows.items()}


def store_of(directory: Path, rows: int, done: bool) -> TokenStore:
    write_store(directory, np.arange(rows * LENGTH + 1, dtype=np.uint32), done)
    return TokenStore(directory, LENGTH)


def mixture(found: dict[str, TokenStore], base: Base = START, seed: int = 0, **weights: float) -> Mixture:
    return Mixture(found, shares(weights or dict.fromkeys(found, 1.0)), seed, base)


def rows_of(mix: Mixture, first: int, stop: int) -> np.ndarray:
    """(source, row of its store) of each global row."""
    sources, numbers = mix.locate(np.arange(first, stop))
    return np.array([(source, mix.place(source, number)) for source, number in zip(sources, numbers)])


@given(WEIGHTS)
def test_a_cycle_holds_every_source_exactly_and_every_prefix_is_within_one_row(weights: list[float]) -> None:
    assume(min(weights) / sum(weights) > 0.001)
    quotas = list(shares({str(number): weight for number, weight in enumerate(weights)}).values())
    owner, before = interleave(quotas)
    counts = np.stack([np.cumsum(owner == source) for source in range(len(quotas))])
    assert counts[:, -1].tolist() == quotas
    exact = np.outer(quotas, np.arange(1, 1001)) / 1000
    assert np.abs(counts - exact).max() < 1
    assert (before == counts[owner, np.arange(1000)] - 1).all()


@given(weights=WEIGHTS, first=st.integers(0, 10**12))
def test_quotas_are_exact_in_every_thousand_rows_from_any_cycle_on(weights: list[float], first: int) -> None:
    assume(min(weights) / sum(weights) > 0.001)
    named = {str(number): weight for number, weight in enumerate(weights)}
    mix = unfilled(named)
    sources, numbers = mix.locate(np.arange(first, first + 1000))
    # any window of 1,000 rows, not only whole cycles, since the cycle repeats
    assert np.bincount(sources, minlength=len(weights)).tolist() == list(shares(named).values())
    assert len(set(zip(sources.tolist(), numbers.tolist()))) == 1000


def unfilled(weights: dict[str, float], base: Base = START) -> Mixture:
    """A mixture whose stores hold nothing yet; enough for what only counts."""
    return mixture({name: TokenStore(Path("nowhere"), LENGTH) for name in weights}, base, **weights)


@given(weights=WEIGHTS, row=st.integers(0, 30_000))
def test_rows_used_in_closed_form_equals_counting(weights: list[float], row: int) -> None:
    assume(min(weights) / sum(weights) > 0.001)
    mix = unfilled({str(number): weight for number, weight in enumerate(weights)})
    sources, numbers = mix.locate(np.arange(row))
    counted = np.bincount(sources, minlength=len(weights)).tolist()
    assert list(mix.rows_used(row).values()) == counted
    assert list(mix.tokens_used(row).values()) == [LENGTH * count for count in counted]
    for source in range(len(weights)):
        assert numbers[sources == source].tolist() == list(range(counted[source]))


@pytest.mark.parametrize("rows", [1, 7, WINDOW_ROWS - 1, WINDOW_ROWS, WINDOW_ROWS + 1, 2 * WINDOW_ROWS + 300])
def test_every_row_comes_once_per_epoch_and_each_epoch_in_another_order(rows: int, tmp_path: Path) -> None:
    mix = mixture(stores(tmp_path, web=rows))
    epochs = [rows_of(mix, epoch * rows, (epoch + 1) * rows)[:, 1] for epoch in range(3)]
    for epoch in epochs:
        assert np.sort(epoch).tolist() == list(range(rows))
        for window in range(0, rows, WINDOW_ROWS):  # shuffled within windows, and only there
            inside = epoch[window : window + WINDOW_ROWS]
            assert np.sort(inside).tolist() == list(range(window, min(window + WINDOW_ROWS, rows)))
    if rows > 6:
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert all(tuple(epoch) != tuple(range(rows)) for epoch in epochs)
    assert mix.epochs(rows * 2) == {"web": 2.0}


def test_the_order_differs_by_seed_and_by_source_and_is_always_the_same(tmp_path: Path) -> None:
    found = stores(tmp_path, web=500, wiki=500)
    one, again, other = mixture(found), mixture(found), mixture(found, seed=1)
    assert (rows_of(one, 0, 2000) == rows_of(again, 0, 2000)).all()
    assert (rows_of(one, 0, 2000) != rows_of(other, 0, 2000)).any()
    located = rows_of(one, 0, 1000)
    assert located[located[:, 0] == 0, 1].tolist() != located[located[:, 0] == 1, 1].tolist()


def test_the_order_is_the_one_that_published_runs_were_trained_in(tmp_path: Path) -> None:
    """A change here would silently change what every resumed run reads next."""
    found = stores(tmp_path, web=100, wiki=40)
    assert rows_of(mixture(found, web=3, wiki=1), 0, 8).tolist() == [
        [0, 63],
        [0, 40],
        [1, 36],
        [0, 13],
        [0, 14],
        [0, 27],
        [1, 37],
        [0, 31],
    ]


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 24), (1, 4), (2, 12), (2, 3), (4, 6), (4, 2), (3, 8)])
def test_any_processes_and_micro_batch_give_the_same_global_batches(
    world: int, micro_batch: int, tmp_path: Path
) -> None:
    found = stores(tmp_path, web=50, wiki=31)
    whole = mixture(found, web=0.7, wiki=0.3)
    for step in (0, 1, 7):
        ranks = [step_rows(step, 24, micro_batch, rank, world) for rank in range(world)]
        assert len({len(rank) for rank in ranks}) == 1 and len(ranks[0]) == 24 // micro_batch // world
        blocks = [rank[number] for number in range(len(ranks[0])) for rank in ranks]
        assert np.concatenate(blocks).tolist() == list(range(step * 24, (step + 1) * 24))
        parts = [mixture(found, web=0.7, wiki=0.3).batch(block) for block in blocks]
        assert (np.concatenate(parts) == whole.batch(np.arange(step * 24, (step + 1) * 24))).all()


def test_rows_overlap_by_one_token_so_that_every_token_is_a_target_once(tmp_path: Path) -> None:
    mix = mixture(stores(tmp_path, web=25))
    batch = mix.batch(np.arange(25))
    assert batch.shape == (25, LENGTH + 1)
    assert np.sort(batch[:, 1:].ravel()).tolist() == list(range(1, 25 * LENGTH + 1))
    assert np.sort(batch[:, :-1].ravel()).tolist() == list(range(25 * LENGTH))


@given(
    first=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    second=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    row=st.integers(0, 5000),
    more=st.integers(0, 3000),
)
def test_a_branch_goes_on_where_its_parent_was_without_repeat_or_skip(
    first: list[float], second: list[float], row: int, more: int
) -> None:
    names = ("a", "b", "c")
    parent = unfilled(dict(zip(names, first)))
    base = parent.base_at(row)
    branch = unfilled(dict(zip(names, second)), base)
    sources, numbers = branch.locate(np.arange(row, row + more))
    for source, name in enumerate(names):
        start = parent.rows_used(row)[name]
        mine = numbers[sources == source].tolist()
        assert mine == list(range(start, start + len(mine)))
    assert branch.rows_used(row) == parent.rows_used(row) and set(branch.tokens_used(row).values()) == {0}
    assert branch.base_at(row) == base
    again = unfilled(dict(zip(names, second)), branch.base_at(row + more))
    assert again.rows_used(row + more) == branch.rows_used(row + more)


def test_a_source_new_in_a_branch_starts_at_its_first_row() -> None:
    base = unfilled({"a": 1.0}).base_at(1234)
    branch = unfilled({"a": 1.0, "b": 1.0}, base)
    assert branch.rows_used(1234) == {"a": 1234, "b": 0}
    assert branch.rows_used(2234) == {"a": 1734, "b": 500}


# -- while stores fill ------------------------------------------------------------------------------------------------


def test_rows_seen_while_a_store_fills_are_the_same_when_it_is_done(tmp_path: Path) -> None:
    total = 2 * WINDOW_ROWS + 500
    ids = np.arange(total * LENGTH + 1, dtype=np.uint32)
    sizes = [
        10,
        LENGTH * WINDOW_ROWS,
        LENGTH * WINDOW_ROWS + 1,
        LENGTH * WINDOW_ROWS + 7000,
        2 * LENGTH * WINDOW_ROWS + 1,
    ]
    seen: dict[int, int] = {}
    write_store(tmp_path / "web", ids[:1], done=False, document=1)
    mix = mixture({"web": TokenStore(tmp_path / "web", LENGTH)})
    for size in sizes:
        write_store(tmp_path / "web", ids[:size], done=False, document=1)
        rows = 0
        while rows < 3 * WINDOW_ROWS and not mix.missing(rows, rows + 1):
            seen[rows] = mix.place(0, rows)
            rows += 512
        whole_windows = (size - 1) // LENGTH // WINDOW_ROWS
        assert rows == whole_windows * WINDOW_ROWS
    write_store(tmp_path / "web", ids, done=True, document=1)
    assert mix.missing(0, 3 * total) == []
    fresh = mixture({"web": TokenStore(tmp_path / "web", LENGTH)})
    assert seen and all(fresh.place(0, number) == mix.place(0, number) == place for number, place in seen.items())
    assert np.sort(rows_of(mix, 0, total)[:, 1]).tolist() == list(range(total))


def test_a_store_that_starts_empty_is_missing_by_name(tmp_path: Path) -> None:
    found = stores(tmp_path, web=WINDOW_ROWS) | {"late": TokenStore(tmp_path / "late", LENGTH)}
    mix = mixture(found, web=1, late=1)
    assert mix.missing(0, 10) == ["late"]
    store_of(tmp_path / "late", 100, done=True)
    assert mix.missing(0, 10) == []
    assert mix.batch(np.arange(10)).shape == (10, LENGTH + 1)


def test_a_row_that_is_not_there_is_never_made_up(tmp_path: Path) -> None:
    mix = mixture(stores(tmp_path, done=False, web=100))
    assert mix.missing(0, 1) == ["web"]  # its window is not whole yet
    with pytest.raises(AutogError, match=r"train\.bin holds 401 tokens"):
        mix.batch(np.arange(400))


@pytest.mark.parametrize("tokens", [0, 1, LENGTH])
def test_a_source_with_less_than_one_row_is_refused_by_name(tokens: int, tmp_path: Path) -> None:
    write_store(tmp_path / "web", np.arange(tokens, dtype=np.uint32), done=True)
    mix = mixture({"web": TokenStore(tmp_path / "web", LENGTH)})
    with pytest.raises(UsageError, match=rf"'web' ended after {tokens} training tokens.*weight 0"):
        mix.missing(0, 1)


def test_the_last_step_of_a_plan_needs_no_token_beyond_what_a_filler_is_told(tmp_path: Path) -> None:
    """The filler's need: planned rows rounded up to whole windows, and one token."""
    planned = WINDOW_ROWS + 5
    windows = -(-planned // WINDOW_ROWS)
    write_store(tmp_path / "web", np.arange(windows * WINDOW_ROWS * LENGTH + 1, dtype=np.uint32), done=False)
    mix = mixture({"web": TokenStore(tmp_path / "web", LENGTH)})
    assert mix.missing(0, planned) == []
    assert mix.batch(np.arange(planned)).shape == (planned, LENGTH + 1)


def test_wide_and_narrow_ids_mix(tmp_path: Path) -> None:
    from autog.data.store import StoreWriter

    writer = StoreWriter(tmp_path / "wide", {}, 200_000)
    assert writer.acquire()
    writer.append("train", np.arange(100_000, 100_000 + 101, dtype=np.uint32), 1)
    writer.commit(None, done=True)
    writer.release()
    mix = mixture({"wide": TokenStore(tmp_path / "wide", LENGTH), **stores(tmp_path, web=25)})
    batch = mix.batch(np.arange(50))
    assert batch.dtype == np.uint32 and batch.max() == 100_100 and batch.min() == 0
