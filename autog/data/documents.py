"""From a row to a document: what a source gives out, and why a row is left out instead."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from autog.recipe import Filter, Source

BEAT_SECONDS = 2.0

Notify = Callable[[str, dict[str, Any]], None]
Place = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to train on; `group` decides its side of the validation split (None: the text itself does)."""

    text: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is not used: `reason` is short and stable (a key of counts), `where` names file and row."""

    reason: str
    where: str
    rows: int = 1


class Row(NamedTuple):
    """What a format found in one row, before it is judged."""

    value: Any
    score: Any
    where: str


class Columnless(NamedTuple):
    """A row, or a file, without the wanted column."""

    column: str
    columns: list[str]
    where: str


class Damaged(Exception):
    """A file whose bytes are not what its format promises, from here to its end."""


Found = Row | Columnless | Skipped


def quiet(kind: str, facts: dict[str, Any]) -> None:
    """The notify of a caller that wants no notices."""


class Beat:
    """Says `working` every few seconds of work, however often it is called."""

    def __init__(self, notify: Notify) -> None:
        self.notify = notify
        self.last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.last >= BEAT_SECONDS:
            self.last = now
            self.notify("working", {})


def judge(row: Row, source: Source) -> Document | Skipped:
    """Cleans and filters one row's text."""
    text = row.value
    if text is None:
        return Skipped("empty", row.where)
    if not isinstance(text, str):
        return Skipped("not text", row.where)
    if source.clean is not None:
        text = CLEANERS[source.clean](text)
    if not text or text.isspace():
        return Skipped("empty", row.where)
    reason = filtered(text, row.score, source.filter) if source.filter else None
    return Skipped(f"filtered: {reason}", row.where) if reason else Document(text)


def filtered(text: str, score: Any, rules: Filter) -> str | None:
    """The rule that leaves the text out, if any."""
    if rules.min_chars is not None and len(text) < rules.min_chars:
        return "min_chars"
    if rules.max_chars is not None and len(text) > rules.max_chars:
        return "max_chars"
    if rules.min_score is not None:
        if isinstance(score, bool) or not isinstance(score, int | float):
            return "no score"
        if not score >= rules.min_score:  # also true of NaN
            return "min_score"
    return None


def clean_wiki40b(text: str) -> str:
    """Title, headings and paragraphs of a Wiki40B article as plain text, a blank line between them."""
    parts = re.split(r"\s*_START_(?:ARTICLE|SECTION|PARAGRAPH)_\s*", text)
    parts = [re.sub(r"\s*_NEWLINE_\s*", "\n", part).strip() for part in parts]
    return "\n\n".join(part for part in parts if part)


CLEANERS: dict[str, Callable[[str], str]] = {"wiki40b": clean_wiki40b}


def encodable(text: str) -> bool:
    """Whether the text is free of lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """An error's first line that says something, or its kind when there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
