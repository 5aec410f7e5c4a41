"""What a run reads, decided once at its first start: revisions, tokenizer, store keys, shares, and fillers' jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autog.data.fill import Job, store_facts
from autog.data.mixture import START, WINDOW_ROWS, Base, Mixture
from autog.data.preview import require_document, training_documents
from autog.data.sources import changed, identity, resolve
from autog.data.store import TokenStore, store_directory, store_key
from autog.errors import AutogError, UsageError
from autog.recipe import Recipe, shares
from autog.tokens import Tokenizer, choose

TOKENIZER_TRAINING_CHARS = 20_000_000

Pinned = dict[str, Any]  # {"sources": {name: {"key", "facts"}}, "quotas": {name: rows per cycle} or None}
Tell = Callable[[str, dict[str, Any]], None]


def resolve_all(recipe: Recipe, tell: Tell) -> dict[str, Any]:
    """The revision of every source, after a look into those that are not read at once; errors name the source."""
    revisions = {}
    for source in recipe.data.sources:
        try:
            revisions[source.name] = resolve(source, tell)
        except AutogError as error:
            raise type(error)(f"source {source.name!r}: {error}") from None
    read_at_once = recipe.trained_sources if recipe.tokenizer and recipe.tokenizer.train else []
    for source in recipe.data.sources:
        if source not in read_at_once:
            require_document(recipe, source, revisions[source.name], tell)
    return revisions


def choose_tokenizer(recipe: Recipe, revisions: dict[str, Any], tell: Tell) -> Tokenizer:
    """The tokenizer that the recipe asks for, trained on its own sources if it says so."""
    assert recipe.tokenizer is not None
    return choose(recipe.tokenizer, training_texts(recipe, revisions, tell))


def training_texts(recipe: Recipe, revisions: dict[str, Any], tell: Tell) -> Iterator[str]:
    """The first training documents of each source, 20 million characters in all, shared out by weight."""
    total = sum(source.weight for source in recipe.trained_sources)
    for source in recipe.trained_sources:
        budget = int(TOKENIZER_TRAINING_CHARS * source.weight / total)
        yield from islice_chars(training_documents(recipe, source, revisions[source.name], tell), budget)


def islice_chars(texts: Iterator[str], budget: int) -> Iterator[str]:
    """Texts until their characters reach the budget."""
    used = 0
    for text in texts:
        if used >= budget:
            return
        yield text[: budget - used]
        used += len(text)


def pin_sources(recipe: Recipe, revisions: dict[str, Any], tokenizer: Tokenizer) -> Pinned:
    """Keys and facts of every source's store, and the shares of the mixture where they are known already."""
    sources = {}
    for source in recipe.data.sources:
        facts = store_facts(
            identity(source),
            revisions[source.name],
            tokenizer,
            recipe.validation_share(source),
            evaluated_only=source.weight == 0,
        )
        sources[source.name] = {"key": store_key(facts), "facts": facts}
    return {"sources": sources, "quotas": known_quotas(recipe)}


def known_quotas(recipe: Recipe) -> dict[str, int] | None:
    """Rows per cycle of 1,000 by weights or in equal parts; None if they depend on sizes not known yet."""
    if recipe.data.mixing == "proportional":
        return None
    return shares({source.name: source.weight for source in recipe.trained_sources})


def proportional_quotas(recipe: Recipe, stores: dict[str, TokenStore]) -> dict[str, int]:
    """Rows per cycle of 1,000 in proportion to the tokens of finished stores; UsageError if one is too small."""
    try:
        return shares({source.name: stores[source.name].tokens("train") for source in recipe.trained_sources})
    except ValueError as error:
        raise UsageError(f"data.mixing = proportional: {error}") from None


def refuse_changes(recipe: Recipe, pinned: Pinned) -> None:
    """UsageError if a local file is no longer what the run began with."""
    for source in recipe.data.sources:
        sentence = changed(source, pinned["sources"][source.name]["facts"]["revision"])
        if sentence is not None:
            raise UsageError(f"source {source.name!r}: {sentence} (--fresh or --run NAME)")


def open_stores(recipe: Recipe, pinned: Pinned) -> dict[str, TokenStore]:
    """The stores of all sources, mapped."""
    length = recipe.data.sequence_length
    return {name: TokenStore(store_directory(item["key"]), length) for name, item in pinned["sources"].items()}


def note_user(directory: Path, run: Path) -> None:
    """Writes into a store which run uses it, so that `autog data prune` knows."""
    directory.mkdir(parents=True, exist_ok=True)
    path, line = directory / "users.txt", f"{run.resolve()}\n"
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    if line not in known:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)


def open_mixture(recipe: Recipe, pinned: Pinned, stores: dict[str, TokenStore], base: Base = START) -> Mixture:
    """The mixture of a run whose shares are known."""
    return Mixture(stores, pinned["quotas"], recipe.data.seed, base)


def evaluation_rows(recipe: Recipe, mixture: Mixture) -> dict[str, int]:
    """Validation rows wanted of each source."""
    planned = mixture.rows_used(recipe.rows)
    return {source.name: recipe.evaluation_rows(source, planned.get(source.name, 0)) for source in recipe.data.sources}


def fill_jobs(recipe: Recipe, pinned: Pinned, tokenizer: Path, mixture: Mixture | None) -> list[Job]:
    """One job per source: whole windows of its planned rows and its validation rows; all of it if no plan is known."""
    length = recipe.data.sequence_length
    planned = mixture.rows_used(recipe.rows) if mixture else {}
    validation = evaluation_rows(recipe, mixture) if mixture else {}
    jobs = []
    for source in recipe.data.sources:
        item = pinned["sources"][source.name]
        train: int | None = None
        val: int | None = None
        if mixture is not None:
            windows = -(-planned.get(source.name, 0) // WINDOW_ROWS)
            train = windows * WINDOW_ROWS * length + 1 if windows else 0
            rows = validation[source.name]
            val = rows * length + 1 if rows else 0
        jobs.append(
            Job(
                source=source.model_dump(mode="json", exclude_unset=True),
                facts=item["facts"],
                directory=str(store_directory(item["key"])),
                tokenizer=str(tokenizer),
                train_tokens=train,
                val_tokens=val,
                patience_seconds=recipe.data.patience_minutes * 60,
            )
        )
    return jobs
