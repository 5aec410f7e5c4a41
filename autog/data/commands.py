"""`autog data`: filling stores without training, and looking into them."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from autog.data.fillers import Fillers
from autog.data.pin import choose_tokenizer, fill_jobs, open_mixture, open_stores, pin_sources, resolve_all
from autog.errors import AutogError, UsageError
from autog.recipe import Recipe, parse_count
from autog.runs import home, read_json
from autog.terminal import printable
from autog.tokens import Tokenizer

TELL_SECONDS = 2.0


def build(name: str, tokens: str | None, overrides: list[str], as_json: bool) -> None:
    """Fills every store of a recipe with what its plan (or `tokens`) needs; AutogError if a source fails."""
    recipe = with_budget(Recipe.load(name, overrides), tokens)
    if recipe.init_from or recipe.tokenizer is None:
        raise UsageError(f"{name} takes its tokenizer from init_from: its stores are filled when it is trained")
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)

    def tell(kind: str, facts: dict[str, Any]) -> None:
        if kind not in ("alive", "working", "waiting"):
            console.print(printable(f"{kind}: {', '.join(f'{key} {value}' for key, value in facts.items())}"))

    revisions = resolve_all(recipe, tell)
    tokenizer = choose_tokenizer(recipe, revisions, tell)
    directory = keep_tokenizer(tokenizer)
    pinned = pin_sources(recipe, revisions, tokenizer)
    stores = open_stores(recipe, pinned)
    mixture = open_mixture(recipe, pinned, stores) if pinned["quotas"] else None
    fillers = Fillers(fill_jobs(recipe, pinned, directory, mixture), tell)
    begun = time.monotonic()
    fillers.start()
    try:
        watch(fillers, console)
    finally:
        fillers.stop()
    rows = [row for row in store_rows() if row["key"] in {item["key"] for item in pinned["sources"].values()}]
    total = sum(row["train_tokens"] + row["val_tokens"] for row in rows)
    if as_json:
        print(json.dumps({"seconds": round(time.monotonic() - begun, 2), "stores": rows}, indent=1))
        return
    show(rows, console)
    console.print(f"{total:,} tokens are there after {time.monotonic() - begun:.1f} s of filling")


def with_budget(recipe: Recipe, tokens: str | None) -> Recipe:
    """The recipe with another number of training tokens."""
    if tokens is None:
        return recipe
    try:
        count = parse_count(tokens)
    except ValueError as error:
        raise UsageError(f"--tokens {tokens}: {error}") from None
    content = recipe.train.model_dump(exclude_unset=True)
    content.pop("steps", None)
    schedule = recipe.schedule.model_dump(exclude_unset=True) | {"warmup_steps": 0}
    return recipe.replace(train={**content, "tokens": count}, schedule=schedule)


def keep_tokenizer(tokenizer: Tokenizer) -> Path:
    """A folder in autog's home that holds this tokenizer."""
    directory = home() / "tokenizers" / tokenizer.sha256[:32]
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        tokenizer.save(Path(place))
        for path in Path(place).iterdir():
            path.replace(directory / path.name)
    return directory


def watch(fillers: Fillers, console: Console) -> None:
    """Shows how far each store is until all have enough; raises the first failure."""
    shown: dict[str, Any] = {}
    told_at = time.monotonic()
    while not fillers.finished:
        error = fillers.error([filler.job.name for filler in fillers.fillers])
        if error is not None:
            raise error
        if time.monotonic() - told_at > TELL_SECONDS:
            told_at = time.monotonic()
            for filler in fillers.fillers:
                tokens = filler.progress.get("train_tokens", 0)
                if shown.get(filler.job.name) != tokens:
                    shown[filler.job.name] = tokens
                    goal = f" of {filler.job.train_tokens:,}" if filler.job.train_tokens else ""
                    console.print(f"{filler.job.name}: {tokens:,}{goal} training tokens")
        time.sleep(0.05)


# -- looking ----------------------------------------------------------------------------------------------------------


def store_rows() -> list[dict[str, Any]]:
    """One row per token store under autog's home."""
    rows = []
    for path in sorted((home() / "tokens").glob("*/manifest.json")):
        manifest = read_json(path)
        files = [file for file in path.parent.iterdir() if file.is_file()]
        rows.append(
            {
                "key": path.parent.name,
                "kind": manifest["identity"]["kind"],
                "location": manifest["identity"]["location"],
                "train_tokens": manifest["train"]["tokens"],
                "train_documents": manifest["train"]["documents"],
                "val_tokens": manifest["val"]["tokens"],
                "val_documents": manifest["val"]["documents"],
                "duplicates": manifest["duplicates"],
                "skipped": manifest["skipped"],
                "done": manifest["done"],
                "bytes": sum(file.stat().st_size for file in files),
                "runs": users(path.parent),
            }
        )
    return rows


def users(directory: Path) -> list[str]:
    """The runs that use a store and still exist."""
    path = directory / "users.txt"
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines() if uses(Path(line), directory.name)]


def uses(run: Path, key: str) -> bool:
    """Whether a run's folder is still there and names the store."""
    pinned = run / "sources.json"
    return pinned.is_file() and key in pinned.read_text(encoding="utf-8")


def stats(as_json: bool) -> None:
    """What is in every store."""
    rows = store_rows()
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif rows:
        show(rows, Console(highlight=False))
    else:
        print(f"no token stores under {home()}: `autog pretrain` and `autog data build` make them")


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The stores as a table, with what was left out below it."""
    table = Table(box=None)
    for column, side in (("key", "left"), ("source", "left"), ("train tokens", "right"), ("validation", "right")):
        table.add_column(column, justify=side, overflow="fold")
    for column in ("documents", "MB", "runs"):
        table.add_column(column, justify="right")
    for row in rows:
        location = row["location"] if isinstance(row["location"], str) else f"{len(row['location'])} URLs"
        table.add_row(
            row["key"][:8],
            printable(Path(location).name) + ("" if row["done"] else " (so far)"),
            f"{row['train_tokens']:,}",
            f"{row['val_tokens']:,}",
            f"{row['train_documents'] + row['val_documents']:,}",
            f"{row['bytes'] / 1e6:.1f}",
            str(len(row["runs"])),
        )
    console.print(table)
    for row in rows:
        for reason, count in row["skipped"].items():
            console.print(printable(f"{row['key'][:8]}: {count:,} rows left out: {reason}"))
        if row["duplicates"]:
            console.print(f"{row['key'][:8]}: {row['duplicates']:,} documents repeat an earlier one, word for word")


def find_store(key: str) -> Path:
    """The store whose key begins so; UsageError if none or several do."""
    found = [path.parent for path in (home() / "tokens").glob("*/manifest.json") if path.parent.name.startswith(key)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} stores have a key that begins with {key!r}: `autog data stats` lists them")
    return found[0]


def sample(key: str, count: int, validation: bool, as_json: bool) -> None:
    """Documents of a store, evenly spaced, decoded with the tokenizer of a run that uses it."""
    directory = find_store(key)
    manifest = read_json(directory / "manifest.json")
    split = "val" if validation else "train"
    documents = manifest[split]["documents"]
    if documents == 0:
        raise AutogError(f"{directory.name} holds no {'validation' if validation else 'training'} documents")
    tokenizer = tokenizer_for(directory, manifest["tokenizer"])
    ends = np.fromfile(directory / f"{split}.idx", dtype="<u8", count=documents)
    ids = np.memmap(directory / f"{split}.bin", dtype=np.dtype(manifest["dtype"]), mode="r")
    chosen = sorted({int(number * documents / count) for number in range(min(count, documents))})
    texts = [tokenizer.decode(ids[int(ends[number - 1]) if number else 0 : int(ends[number])]) for number in chosen]
    if as_json:
        rows = [{"document": number, "text": text} for number, text in zip(chosen, texts)]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for number, text in zip(chosen, texts):
        print(f"--- document {number:,} of {documents:,}\n{printable(text)}")


def tokenizer_for(directory: Path, sha256: str) -> Tokenizer:
    """The tokenizer that a store was made with, from autog's home or a run that uses the store."""
    places = [home() / "tokenizers" / sha256[:32], *(Path(run) / "tokenizer" for run in users(directory))]
    for place in places:
        if (place / "tokenizer.json").is_file():
            return Tokenizer.load(place)
    raise AutogError(f"no run with the tokenizer of store {directory.name} is left: its ids cannot be read as text")


def is_idle(directory: Path) -> bool:
    """Whether no filler writes to a store at this moment."""
    with (directory / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def prune(dry_run: bool, as_json: bool) -> None:
    """Removes the stores that no run uses, and those that `data build` made for no run."""
    unused = [row for row in store_rows() if not row["runs"]]
    unused = [row for row in unused if is_idle(home() / "tokens" / row["key"])]
    for row in unused if not dry_run else []:
        shutil.rmtree(home() / "tokens" / row["key"])
    if as_json:
        print(json.dumps([row["key"] for row in unused], indent=1))
        return
    freed = sum(row["bytes"] for row in unused) / 1e6
    word = "would be removed" if dry_run else "removed"
    print(f"{len(unused)} stores that no run uses {word}: {freed:.1f} MB")
