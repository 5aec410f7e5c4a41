"""The data path by itself: filling stores, one process or one per source, and mapping rows out of them.

    python scripts/bench/data.py TEXTS.jsonl [TEXTS.jsonl ...] --tokenizer gpt2

Fill rates are tokens per second of CPU time of the filling process (one core), start-up included; the peer for reading
rows is nanoGPT's get_batch as its train.py has it: random places, one array per row, stacked as int64.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

MEGABYTES = 64


def enlarge(paths: list[Path], folder: Path, megabytes: int) -> list[Path]:
    """Copies of jsonl files, repeated with a number in each text until they have that size in all."""
    made = []
    for path in paths:
        rows = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
        target, size, number = folder / path.name, 0, 0
        with target.open("w", encoding="utf-8") as file:
            while size < megabytes * 1e6 / len(paths):
                line = json.dumps({"text": f"{number} {rows[number % len(rows)]}"}, ensure_ascii=False) + "\n"
                size, number = size + len(line.encode()), number + 1
                file.write(line)
        made.append(target)
    return made


def recipe_for(files: list[Path], tokenizer: str, folder: Path) -> Path:
    """A recipe over these files that plans more tokens than they hold, so that all of them are filled."""
    sources = ", ".join(f"{{name: s{number}, weight: 1, path: {path}}}" for number, path in enumerate(files))
    path = folder / "bench.yaml"
    path.write_text(
        "name: bench\nmodel: {model_type: llama, depth: 1}\n"
        f"tokenizer: {{tiktoken: {tokenizer}}}\n"
        f"data: {{sequence_length: 1024, sources: [{sources}]}}\n"
        "optimizer: {learning_rate: 1e-3}\ntrain: {tokens: 1B, batch_tokens: 1024}\n"
    )
    return path


def fill_all(recipe_path: Path, one_process: bool) -> tuple[int, float, float]:
    """Fills every store of a recipe anew: (tokens, CPU seconds, wall seconds)."""
    from autog.data.fill import fill
    from autog.data.fillers import Fillers
    from autog.data.pin import choose_tokenizer, fill_jobs, open_stores, pin_sources, resolve_all
    from autog.recipe import Recipe

    with tempfile.TemporaryDirectory() as home:
        os.environ["AUTOG_HOME"] = home
        recipe = Recipe.load(str(recipe_path))
        revisions = resolve_all(recipe, lambda kind, facts: None)
        tokenizer = choose_tokenizer(recipe, revisions, lambda kind, facts: None)
        folder = Path(home) / "tokenizer"
        folder.mkdir()
        tokenizer.save(folder)
        pinned = pin_sources(recipe, revisions, tokenizer)
        jobs = fill_jobs(recipe, pinned, folder, None)
        who = resource.RUSAGE_SELF if one_process else resource.RUSAGE_CHILDREN
        before, begun = resource.getrusage(who), time.perf_counter()
        if one_process:
            for job in jobs:
                fill(job, lambda kind, facts: None, threading.Event())
        else:
            fillers = Fillers(jobs, lambda kind, facts: None)
            fillers.start()
            while not fillers.finished:
                time.sleep(0.01)
            fillers.stop()
        wall, after = time.perf_counter() - begun, resource.getrusage(who)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        stores = open_stores(recipe, pinned).values()
        return sum(store.tokens("train") + store.tokens("val") for store in stores), cpu, wall


def map_rows(tokens: int) -> tuple[float, float]:
    """Tokens per second of one thread: a mixture of three stores, and nanoGPT's get_batch."""
    from autog.data.mixture import Mixture
    from autog.data.store import StoreWriter, TokenStore
    from autog.recipe import shares

    length, batch = 1024, 64
    with tempfile.TemporaryDirectory() as place:
        stores = {}
        for number in range(3):
            writer = StoreWriter(Path(place) / str(number), {"identity": {}}, 50257)
            writer.acquire()
            ids = np.random.default_rng(number).integers(0, 50257, tokens // 3).astype(np.uint16)
            writer.append("train", ids, number)
            writer.commit(None, done=True)
            writer.release()
            stores[str(number)] = TokenStore(Path(place) / str(number), length)
        mixture = Mixture(stores, shares({"0": 0.5, "1": 0.3, "2": 0.2}), seed=0)
        ours = theirs = 0.0
        for _ in range(5):
            begun = time.perf_counter()
            for step in range(100):
                mixture.batch(np.arange(step * batch, (step + 1) * batch))
            ours = max(ours, 100 * batch * length / (time.perf_counter() - begun))
            begun = time.perf_counter()
            for _ in range(20):
                get_batch(Path(place) / "0" / "train.bin", length, batch)
            theirs = max(theirs, 20 * batch * length / (time.perf_counter() - begun))
        return ours, theirs


def get_batch(path: Path, length: int, rows: int) -> tuple:
    """What nanoGPT's loader does for a batch."""
    import torch

    data = np.memmap(path, dtype=np.uint16, mode="r")
    places = torch.randint(len(data) - length, (rows,))
    x = torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in places])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in places])
    return x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        files = enlarge(arguments.texts, Path(place), arguments.megabytes)
        recipe = recipe_for(files, arguments.tokenizer, Path(place))
        for one_process in (True, False) * arguments.rounds:
            tokens, cpu, wall = fill_all(recipe, one_process)
            how = "one process for all" if one_process else f"one per source ({len(files)})"
            print(f"fill, {how:<24} {tokens:,} tokens  {tokens / cpu / 1e6:5.2f} M tokens/s of CPU  wall {wall:5.1f} s")
    ours, theirs = map_rows(60_000_000)
    print(f"map rows: {ours / 1e6:,.0f} M tokens/s; nanoGPT's get_batch {theirs / 1e6:,.0f} M tokens/s")


if __name__ == "__main__":
    main()
