"""Where documents come from: hub, files, URLs and Python itself, each read from an exact position.

A row becomes a `Document` or a `Skipped` with its reason; nothing is lost without a word. Revisions (`resolve`) pin
what is read, positions (`Reader.position`) say how far reading has come; both are plain JSON.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from autog.data.documents import Beat, Document, Notify, Place, Row, Skipped, encodable, judge, quiet
from autog.data.files import Entry, Files
from autog.data.formats import format_of, known_formats
from autog.data.plain import codec_of
from autog.errors import UsageError
from autog.recipe import Source

PATIENCE_SECONDS = 1_800.0
RESOLVE_PATIENCE_SECONDS = 60.0  # at a start a person is waiting: say soon that there is no network


class Reader(Protocol):
    """Documents in a fixed order; `position` is where reading goes on after the last item given out."""

    def __iter__(self) -> Iterator[Document | Skipped]: ...
    def position(self) -> Place: ...
    def close(self) -> None: ...


def resolve(source: Source, notify: Notify = quiet, patience_seconds: float = RESOLVE_PATIENCE_SECONDS) -> Place:
    """What pins the source's content: a commit, the files' sizes and times, the URLs' ETags, Python's version."""
    return SOURCES[source.kind].resolve(source, notify, patience_seconds)


def open_source(
    source: Source,
    revision: Place,
    position: Place | None,
    notify: Notify,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Reader:
    """A reader of the pinned content from `position` (None: the start); remote reads are retried for that long."""
    return SOURCES[source.kind].open(source, revision, position, notify, patience_seconds)


def changed(source: Source, revision: Place) -> str | None:
    """A sentence naming the first local thing that is no longer what `revision` pinned; None if all is well."""
    return SOURCES[source.kind].changed(source, revision)


def identity(source: Source) -> Place:
    """The fields that change the documents, as plain JSON."""
    kind = source.kind
    location = getattr(source, kind)
    if kind == "path":
        location = str(absolute(location))
    facts: Place = {"kind": kind, "location": location, "clean": source.clean}
    if kind == "hub":
        keys = ("config", "data_dir", "data_files", "split", "column")
    else:
        keys = () if kind == "embedded" else ("column", "encoding")
    facts |= {key: getattr(source, key) for key in keys}
    facts["filter"] = source.filter.model_dump(mode="json") if source.filter else None
    return facts


# --- path ---


def absolute(path: str) -> Path:
    """The path as an absolute one, without touching the disk (a glob has nothing to touch)."""
    return Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111 - resolve() would follow links


def list_files(source: Source) -> list[Path]:
    """The files that `path` names, sorted; UsageError if there are none or a named one has an unknown suffix."""
    assert source.path is not None
    path = absolute(source.path)
    if path.is_file():
        if format_of(path.name) is None:
            raise UsageError(f"{path} has no known format; known are {known_formats()}")
        return [path]
    if path.is_dir():
        found = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names)
        files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - takes absolute patterns
    usable = sorted(file for file in files if format_of(file.name) and file.is_file())
    if not usable:
        others = f"; {len(files)} there have no known format" if files else ""
        raise UsageError(f"source {source.name!r}: no files at {path}{others}; known formats are {known_formats()}")
    return usable


def resolve_path(source: Source, notify: Notify, patience_seconds: float) -> Place:
    """Each file's path, size and time of change."""
    codec_of(source.encoding, b"")
    facts = [(path, path.stat()) for path in list_files(source)]
    return {"files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in facts]}


def changed_path(source: Source, revision: Place) -> str | None:
    """Names the first pinned file that is not as it was."""
    return next((said for entry in revision["files"] if (said := changed_file(*entry))), None)


def changed_file(path: str, size: int, mtime_ns: int) -> str | None:
    """How one file differs from what was pinned."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        return f"{path} cannot be read any more ({error.strerror}): put it back, or start a new run"
    if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
        return f"{path} changed since the run began: put the old file back, or start a new run"
    return None


def open_path(
    source: Source, revision: Place, position: Place | None, notify: Notify, patience_seconds: float
) -> Reader:
    return Files(source, [local_entry(*facts) for facts in revision["files"]], position, notify)


def local_entry(path: str, size: int, mtime_ns: int) -> Entry:
    """A pinned local file."""

    def check() -> None:
        if said := changed_file(path, size, mtime_ns):
            raise UsageError(said)

    def open_file() -> IO[bytes]:
        try:
            return Path(path).open("rb")
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): check that it is there and yours") from None

    return Entry(path, format_of(path) or "", open_file, check)


# --- url ---


def url_list(source: Source) -> list[str]:
    """The URLs of a source; UsageError for one whose format its path does not tell."""
    from autog.data import remote

    urls = [source.url] if isinstance(source.url, str) else list(source.url or [])
    for url in urls:
        remote.require_http(url)
        if format_of(remote.path_of(url)) is None:
            raise UsageError(f"{remote.shown(url)} has no known format; known are {known_formats()}")
    if not urls:
        raise UsageError(f"source {source.name!r} names no URL: give one or a list")
    return urls


def resolve_url(source: Source, notify: Notify, patience_seconds: float) -> Place:
    """Each URL with its ETag, length and time of change, null where the server names none."""
    from autog.data import remote

    codec_of(source.encoding, b"")
    return {"urls": [list(remote.probe(url, notify, patience_seconds)) for url in url_list(source)]}


def open_url(
    source: Source, revision: Place, position: Place | None, notify: Notify, patience_seconds: float
) -> Reader:
    from autog.data import remote

    def entry(facts: list[Any]) -> Entry:
        pinned = remote.Pinned(*facts)
        kind = format_of(remote.path_of(pinned.url)) or ""
        wide = kind == ".parquet"  # read at many places: requests of a few MiB instead of one to the end
        return Entry(
            remote.shown(pinned.url),
            kind,
            lambda: remote.open_remote(pinned, notify, patience_seconds, random_access=wide),
            lambda: None,
        )

    return Files(source, [entry(facts) for facts in revision["urls"]], position, notify)


# --- hub ---


class HubReader:
    """Rows of a hub dataset as documents."""

    def __init__(self, source: Source, rows: Any) -> None:
        self.source, self.rows = source, rows

    def __iter__(self) -> Iterator[Document | Skipped]:
        score_column = self.source.filter.score_column if self.source.filter else None
        for number, row in self.rows:
            where = f"{self.source.hub}: row {number}"
            value = row.get(self.source.column)
            if isinstance(value, str) and not value.isascii() and not encodable(value):
                yield Skipped("lone surrogates", where)
            else:
                yield judge(Row(value, row.get(score_column) if score_column else None, where), self.source)

    def position(self) -> Place:
        return self.rows.position()

    def close(self) -> None:
        self.rows.close()


def resolve_hub(source: Source, notify: Notify, patience_seconds: float) -> Place:
    from autog.data import hub

    return {"commit": hub.hub_commit(str(source.hub), source.revision, notify, patience_seconds)}


def open_hub(
    source: Source, revision: Place, position: Place | None, notify: Notify, patience_seconds: float
) -> Reader:
    from autog.data import hub

    score = source.filter.score_column if source.filter else None
    wanted = hub.HubChoice(
        dataset=str(source.hub),
        commit=revision["commit"],
        config=source.config,
        split=source.split,
        data_dir=source.data_dir,
        data_files=source.data_files,
        columns=[source.column, *([score] if score else [])],
    )
    return HubReader(source, hub.HubRows(wanted, position, notify, patience_seconds))


# --- embedded ---


def resolve_embedded(source: Source, notify: Notify, patience_seconds: float) -> Place:
    from autog.data import embedded

    return embedded.revision(str(source.embedded))


def changed_embedded(source: Source, revision: Place) -> str | None:
    from autog.data import embedded

    now = embedded.revision(str(source.embedded))
    if now == revision:
        return None
    told = " and ".join(f"{key} {revision.get(key)} (here: {now.get(key)})" for key in now)
    return f"the embedded source {source.embedded!r} was begun with {told}: use the same, or start a new run"


class EmbeddedReader:
    """The documents that every Python installation carries; the position is how many were passed."""

    def __init__(self, source: Source, position: Place | None, notify: Notify) -> None:
        self.source, self.beat = source, Beat(notify)
        self.passed = (position or {}).get("passed", 0)

    def __iter__(self) -> Iterator[Document | Skipped]:
        from autog.data import embedded

        for number, group, text in embedded.documents(str(self.source.embedded), self.passed, self.beat):
            self.passed = number + 1
            where = f"{self.source.embedded}: {group or number}"
            item = Skipped("duplicate", where) if text is None else judge(Row(text, None, where), self.source)
            yield Document(item.text, group) if isinstance(item, Document) else item

    def position(self) -> Place:
        return {"passed": self.passed}

    def close(self) -> None:
        """Nothing is held open."""


def open_embedded(
    source: Source, revision: Place, position: Place | None, notify: Notify, patience_seconds: float
) -> Reader:
    if said := changed_embedded(source, revision):
        raise UsageError(said)
    return EmbeddedReader(source, position, notify)


def never_changed(source: Source, revision: Place) -> str | None:
    """Of what is far away nothing can be said without network; reading it notices."""
    return None


@dataclass(frozen=True)
class Kind:
    """The three functions of a kind of source."""

    resolve: Callable[[Source, Notify, float], Place]
    open: Callable[[Source, Place, Place | None, Notify, float], Reader]
    changed: Callable[[Source, Place], str | None]


SOURCES: dict[str, Kind] = {
    "hub": Kind(resolve_hub, open_hub, never_changed),
    "path": Kind(resolve_path, open_path, changed_path),
    "url": Kind(resolve_url, open_url, never_changed),
    "embedded": Kind(resolve_embedded, open_embedded, changed_embedded),
}
