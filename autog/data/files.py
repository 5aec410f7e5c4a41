"""Files, local or remote, one after another as one stream of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from autog.data.documents import Beat, Columnless, Damaged, Document, Found, Notify, Place, Skipped, judge
from autog.data.formats import FORMATS
from autog.data.plain import likely_encoding, read_fully, unpack
from autog.errors import UsageError
from autog.recipe import Source

JUDGE_ROWS, JUDGE_BYTES = 100, 1 << 20  # a file is judged on this much of it, then at its end
UNDECODABLE_SHARE = 0.01


@dataclass(frozen=True)
class Entry:
    """One pinned file: `open` gives its bytes, `check` complains if it is no longer what was pinned."""

    name: str
    format: str
    open: Callable[[], IO[bytes]]
    check: Callable[[], None]


COUNTS = ("rows", "bad", "file_rows", "file_bad")


class Files:
    """Pinned files as one stream of documents."""

    def __init__(self, source: Source, entries: list[Entry], position: Place | None, notify: Notify) -> None:
        self.source, self.entries, self.beat = source, entries, Beat(notify)
        self.state: Place = {"file": 0, "place": {}, "usable": False, **dict.fromkeys(COUNTS, 0)} | (position or {})
        self.file: IO[bytes] | None = None
        self.judged = False

    def position(self) -> Place:
        return dict(self.state)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def __iter__(self) -> Iterator[Document | Skipped]:
        while self.state["file"] < len(self.entries):
            entry = self.entries[self.state["file"]]
            lost: Skipped | None = None
            try:
                yield from self.read(entry)
            except Damaged as error:
                if not self.state["usable"]:
                    raise UsageError(f"{entry.name}: {error}: replace the file or leave it out") from None
                lost = Skipped("damaged", f"{entry.name}: {error}")
            finally:
                self.close()
            entry.check()
            self.judge_encoding(entry, at_end=True)
            self.state |= {"file": self.state["file"] + 1, "place": {}, "file_rows": 0, "file_bad": 0}
            if lost:
                yield lost

    def read(self, entry: Entry) -> Iterator[Document | Skipped]:
        """One file from the place in it."""
        entry.check()
        self.file, self.judged = entry.open(), False
        for found, place in FORMATS[entry.format](self.file, entry.name, self.source, self.state["place"], self.beat):
            item = self.weigh(found)
            found = None
            self.state["place"] = place
            self.count(item, entry)
            yield item
            item = None

    def weigh(self, found: Found) -> Document | Skipped:
        """A row's document; a column that is missing from the very first row is the recipe's mistake."""
        if isinstance(found, Columnless):
            if not self.state["usable"]:
                raise UsageError(
                    f"{found.where} has no column {found.column!r}; it has {', '.join(found.columns) or 'none'}: "
                    f"name one of them in source {self.source.name!r}"
                )
            return Skipped("no column", found.where)
        if isinstance(found, Skipped):
            return found
        self.state["usable"] = True
        return judge(found, self.source)

    def count(self, item: Document | Skipped, entry: Entry) -> None:
        """Keeps the counts by which the encoding is judged, and judges when enough was seen."""
        bad = isinstance(item, Skipped) and item.reason == "undecodable"
        for key in ("rows", "file_rows"):
            self.state[key] += 1
        for key in ("bad", "file_bad"):
            self.state[key] += bad
        if not self.judged and (
            self.state["file_rows"] >= JUDGE_ROWS or self.state["place"].get("offset", 0) >= JUDGE_BYTES
        ):
            self.judged = True
            self.judge_encoding(entry, at_end=False)
            if not self.state["usable"] and isinstance(item, Skipped) and item.reason == "malformed":
                raise UsageError(
                    f"{entry.name}: none of the first {self.state['file_rows']} lines is a JSON object: "
                    "a .jsonl file has one per line"
                )

    def judge_encoding(self, entry: Entry, at_end: bool) -> None:
        """AutogError when more than one row in a hundred cannot be decoded: then the encoding is wrong, not the row."""
        last = at_end and self.state["file"] == len(self.entries) - 1
        for rows, bad in (("file_rows", "file_bad"), ("rows", "bad")):
            enough = self.state[rows] >= JUDGE_ROWS or self.state["place"].get("offset", 0) >= JUDGE_BYTES or last
            if enough and self.state[bad] > UNDECODABLE_SHARE * self.state[rows]:
                break
        else:
            return
        if entry.format == ".parquet":
            remedy = "the file is damaged: replace it"
        else:
            with entry.open() as file:
                guess = likely_encoding(read_fully(unpack(file), JUDGE_BYTES))
            remedy = f"it looks like {guess}: set `encoding: {guess}` for source {self.source.name!r}, or mend the file"
        raise UsageError(
            f"{self.state[bad]} of {self.state[rows]} rows up to {entry.name} are not {self.source.encoding}; {remedy}"
        )
