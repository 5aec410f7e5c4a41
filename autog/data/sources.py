"""Where documents come from: hub, files, URLs and Python itself, each read from an exact position.

A row becomes a `Document` or a `Skipped` with its reason; nothing is lost without a word. Revisions (`resolve`) pin
what is read, positions (`Reader.position`) say how far reading has come; both are plain JSON.
"""

from __future__ import annotations

import codecs
import glob
import io
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from autog.errors import UsageError
from autog.recipe import Filter, Source

if TYPE_CHECKING:
    import pyarrow

PIECE_BYTES = 16_384  # a text file longer than this is cut at the next blank line
CHUNK_BYTES = 1 << 16  # read at once from a text or jsonl file; what a silent server sent before is used but for this
FEED_BYTES = 2_048  # compressed bytes unpacked at once: zstd's densest block makes 64 MiB of these, no bomb makes more
LONGEST_ROW_BYTES = 256 << 20
BATCH_BYTES = 8 << 20  # uncompressed parquet values held at once, roughly
JUDGE_ROWS, JUDGE_BYTES = 100, 1 << 20  # a file is judged on this much of it, then at its end
UNDECODABLE_SHARE = 0.01
BEAT_SECONDS = 2.0
PATIENCE_SECONDS = 1_800.0
RESOLVE_PATIENCE_SECONDS = 60.0  # at a start a person is waiting: say soon that there is no network
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

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


class Reader(Protocol):
    """Documents in a fixed order; `position` is where reading goes on after the last item given out."""

    def __iter__(self) -> Iterator[Document | Skipped]: ...
    def position(self) -> Place: ...
    def close(self) -> None: ...


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


# --- from a row to a document ---


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


# --- bytes: decompression, encodings, lines ---


class Unpacked(io.RawIOBase):
    """A gzip or zstd stream as plain bytes, forward only, a bounded amount at a time; a torn end is Damaged."""

    def __init__(self, packed: IO[bytes], new_unpacker: Callable[[], Any], failure: type[Exception]) -> None:
        self.packed, self.new_unpacker, self.failure = packed, new_unpacker, failure
        self.unpacker: Any = None
        self.waiting = b""  # compressed, not yet fed
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self.ready:
            self.waiting = self.waiting or self.packed.read(CHUNK_BYTES)
            if self.waiting:
                self.feed()
            elif self.unpacker is not None:
                raise Damaged("the compressed data ends too early")
            else:
                return 0
        count = min(len(target), len(self.ready))
        target[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count

    def feed(self) -> None:
        """Unpacks a little; a finished frame or member is followed by the next one, or by padding."""
        if self.unpacker is None:
            self.waiting = self.waiting.lstrip(b"\0")
            if not self.waiting:
                return
            self.unpacker = self.new_unpacker()
        piece, self.waiting = self.waiting[:FEED_BYTES], self.waiting[FEED_BYTES:]
        try:
            self.ready = memoryview(self.unpacker.decompress(piece))
        except self.failure as error:
            raise Damaged(f"the compressed data is damaged ({error})") from None
        if self.unpacker.eof:
            self.waiting = self.unpacker.unused_data + self.waiting
            self.unpacker = None


def unpack(file: IO[bytes]) -> IO[bytes]:
    """The file's plain bytes; its first bytes tell how it is packed, whatever its name says."""
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], Unpacked(file, lambda: zlib.decompressobj(wbits=31), zlib.error))
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        new = zstandard.ZstdDecompressor().decompressobj
        return cast(IO[bytes], Unpacked(file, new, zstandard.ZstdError))
    return file


def skip_to(stream: IO[bytes], offset: int, beat: Beat) -> None:
    """Moves a fresh plain stream to a byte offset."""
    if stream.seekable():
        stream.seek(offset)
        return
    while offset > 0:
        chunk = stream.read(min(offset, CHUNK_BYTES))
        if not chunk:
            raise Damaged("it is shorter than when it was read before")
        offset -= len(chunk)
        beat()


def read_fully(stream: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end."""
    chunk = stream.read(size)
    if len(chunk) == size or not chunk:
        return chunk
    parts, missing = [chunk], size - len(chunk)
    while missing and (chunk := stream.read(missing)):
        parts.append(chunk)
        missing -= len(chunk)
    return b"".join(parts)


BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # the longer first: UTF-32's begins like UTF-16's
PLAIN_NAMES = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}


def codec_of(encoding: str, start: bytes) -> tuple[str, int]:
    """The codec of a file and the length of its byte order mark; a mark outweighs the declared encoding."""
    for mark, codec in BOMS:
        if start.startswith(mark):
            return codec, len(mark)
    try:
        name = codecs.lookup(encoding).name
        "\n".encode(name)
    except (LookupError, UnicodeError):
        raise UsageError(f"encoding {encoding!r} is not known: try utf-8, utf-16, cp1252 or latin-1") from None
    return PLAIN_NAMES.get(name, name), 0


def likely_encoding(sample: bytes) -> str:
    """The encoding that a file's beginning looks like."""
    if any(sample.startswith(mark) for mark, _ in BOMS):
        return codec_of("utf-8", sample)[0]
    zeros = (sample[0::2].count(0), sample[1::2].count(0))
    if max(zeros) > len(sample) / 8:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    for name in ("utf-8", "cp1252"):
        try:
            codecs.getincrementaldecoder(name)().decode(sample)
            return name
        except UnicodeDecodeError:
            continue
    return "latin-1"


def find_aligned(chunk: bytes, newline: bytes, start: int) -> int:
    """Where the next newline begins; in UTF-16 and -32 only at whole characters."""
    found = chunk.find(newline, start)
    while found >= 0 and found % len(newline):
        found = chunk.find(newline, found + 1)
    return found


def lines(stream: IO[bytes], newline: bytes, beat: Beat) -> Iterator[tuple[bytes | bytearray | None, int]]:
    """Each line with its newline and its length in bytes; None for one too long to be held.

    A long one comes as a bytearray that its taker may clear: so it is never in memory twice.
    """
    held = bytearray()
    size = 0
    while chunk := read_fully(stream, CHUNK_BYTES):
        beat()
        start = 0
        while (found := find_aligned(chunk, newline, start)) >= 0:
            end = found + len(newline)
            size += end - start
            if size == end - start:
                yield chunk[start:end], size
            elif size <= LONGEST_ROW_BYTES:
                held += chunk[start:end]
                yield held, size
            else:
                yield None, size
            held, size, start = bytearray(), 0, end
        size += len(chunk) - start
        if size <= LONGEST_ROW_BYTES:
            held += chunk[start:]
        else:
            held.clear()
    if size:
        yield (held if size <= LONGEST_ROW_BYTES else None), size


def text_stream(file: IO[bytes], encoding: str, offset: int, beat: Beat) -> tuple[IO[bytes], str, int]:
    """The plain bytes of a text file from `offset`, their codec, and the offset (past the byte order mark)."""
    stream = unpack(file)
    start = read_fully(stream, 4)
    codec, mark = codec_of(encoding, start)
    offset = max(offset, mark)
    if stream.seekable():
        stream.seek(offset)
    elif offset < len(start):
        stream = cast(IO[bytes], Joined(start[offset:], stream))
    else:
        skip_to(stream, offset - len(start), beat)
    return stream, codec, offset


class Joined(io.RawIOBase):
    """Bytes already read, followed by the rest of a stream that cannot go back."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self.first, self.rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self.first or self.rest.read(len(target))
        count = min(len(data), len(target))
        target[:count] = data[:count]
        self.first = data[count:]
        return count


# --- formats: (what was found, the place after it) from a place in one file ---


def read_jsonl(file: IO[bytes], name: str, source: Source, place: Place, beat: Beat) -> Iterator[tuple[Found, Place]]:
    """One JSON object per line; every line is judged on its own."""
    stream, codec, offset = text_stream(file, source.encoding, place.get("offset", 0), beat)
    number = place.get("line", 0)
    for line, size in lines(stream, "\n".encode(codec), beat):
        offset, number = offset + size, number + 1
        where = f"{name}:{number}"
        found = Skipped("too long", where) if line is None else parse_line(line, codec, source, where)
        line = None  # a long one should not stay while its document is worked on
        if found is not None:
            yield found, {"offset": offset, "line": number}
        found = None


def parse_line(line: bytes | bytearray, codec: str, source: Source, where: str) -> Found | None:
    """What one line holds; None for a blank one."""
    try:
        text = str(line, codec)
    except UnicodeDecodeError:
        return Skipped("undecodable", where)
    # Strict decoding lets none through, so they can only come from escapes; in UTF-16 the pattern would miss those.
    surrogates = codec.startswith(("utf-16", "utf-32")) or ESCAPED_SURROGATE.search(line) is not None
    if isinstance(line, bytearray):
        line.clear()
    if text.isspace():
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return Skipped("malformed", where)
    del text
    if not isinstance(content, dict):
        return Skipped("malformed", where)
    wanted = [source.column, *([source.filter.score_column] if source.filter and source.filter.score_column else [])]
    for column in wanted:
        if column not in content:
            return Columnless(column, list(content), where)
    value = content[source.column]
    if surrogates and isinstance(value, str) and not encodable(value):
        return Skipped("lone surrogates", where)
    return Row(value, content[wanted[-1]], where)


def encodable(text: str) -> bool:
    """Whether the text is free of lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(file: IO[bytes], name: str, source: Source, place: Place, beat: Beat) -> Iterator[tuple[Found, Place]]:
    """The file as one document; a longer one in pieces cut at blank lines, without ever being held as a whole."""
    stream, codec, offset = text_stream(file, source.encoding, place.get("offset", 0), beat)
    piece, began, too_long = bytearray(), offset, False
    for line, size in lines(stream, "\n".encode(codec), beat):
        offset += size
        too_long = too_long or line is None or len(piece) + size > LONGEST_ROW_BYTES
        if too_long:
            piece.clear()
        elif line is not None:
            blank = not line.strip(b" \t\r\n\v\f\0")
            if not piece and blank:
                began = offset
                continue
            piece += line
            if not blank or len(piece) < PIECE_BYTES:
                continue
        if line is not None and line.strip(b" \t\r\n\v\f\0"):
            continue
        yield decode_piece(piece, codec, too_long, f"{name}:byte {began}"), {"offset": offset}
        piece, began, too_long = bytearray(), offset, False
    if piece or too_long:
        yield decode_piece(piece, codec, too_long, f"{name}:byte {began}"), {"offset": offset}


def decode_piece(piece: bytearray, codec: str, too_long: bool, where: str) -> Found:
    """The piece's text with \\n for every line end and no blank lines around it."""
    if too_long:
        return Skipped("too long", where)
    if not codec.startswith(("utf-16", "utf-32")):
        while piece and piece[-1] in b" \t\r\n":
            del piece[-1]  # in place: afterwards `strip` finds nothing to do and need not copy a long text
    try:
        text = str(piece, codec)
    except UnicodeDecodeError:
        return Skipped("undecodable", where)
    piece.clear()
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Row(text.strip("\n").rstrip(), None, where)


def read_parquet(file: IO[bytes], name: str, source: Source, place: Place, beat: Beat) -> Iterator[tuple[Found, Place]]:
    """Row groups in order, only the columns that are wanted; one that cannot be read is skipped as a whole."""
    import pyarrow
    from pyarrow import parquet

    try:
        reader = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise Damaged(f"it is not a readable parquet file ({first_line(error)})") from None
    columns = reader.schema_arrow.names
    wanted = [source.column, *([source.filter.score_column] if source.filter and source.filter.score_column else [])]
    lacking = [column for column in wanted if column not in columns]
    if lacking:
        yield Columnless(lacking[0], columns, name), {"group": reader.num_row_groups, "row": 0}
        return
    require_text(reader.schema_arrow.field(source.column).type, source.column, name)
    for group in range(place.get("group", 0), reader.num_row_groups):
        given = place.get("row", 0) if group == place.get("group", 0) else 0
        total = reader.metadata.row_group(group).num_rows
        try:
            for row in group_rows(reader, group, wanted, given, name):
                given += 1
                yield row, {"group": group, "row": given}
                beat()
        except (pyarrow.ArrowException, OSError) as error:
            where = f"{name}: row group {group}, rows {given} to {total - 1} ({first_line(error)})"
            yield Skipped("damaged", where, rows=total - given), {"group": group + 1, "row": 0}


def group_rows(reader: Any, group: int, wanted: list[str], skip: int, name: str) -> Iterator[Found]:
    """The rows of one row group after the first `skip`, a few MiB at a time."""
    facts = reader.metadata.row_group(group)
    size = max(1, min(1024, BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)))
    batches = reader.iter_batches(batch_size=size, row_groups=[group], columns=wanted, use_threads=False)
    number = 0
    for batch in batches:
        if number + batch.num_rows <= skip:
            number += batch.num_rows
            continue
        scores = batch.column(wanted[-1]).to_pylist() if len(wanted) > 1 else None
        values = batch.column(wanted[0])
        for index in range(batch.num_rows):
            number += 1
            if number <= skip:
                continue
            where = f"{name}: row group {group}, row {number - 1}"
            try:
                value = values[index].as_py()
            except UnicodeDecodeError:
                yield Skipped("undecodable", where)
                continue
            yield Row(value, scores[index] if scores else None, where)


def require_text(kind: pyarrow.DataType, column: str, name: str) -> None:
    """UsageError for a parquet column that holds something else than text."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)):
        raise UsageError(f"column {column!r} of {name} holds {kind}, not text: name a column of text")


def first_line(error: BaseException) -> str:
    """An error's first line, or its kind when it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


FORMATS: dict[str, Callable[..., Iterator[tuple[Found, Place]]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json-lines": read_jsonl,
    ".txt": read_text,
    ".text": read_text,
    ".md": read_text,
    ".markdown": read_text,
    ".parquet": read_parquet,
}
PACKED = (".gz", ".zst")


def format_of(name: str) -> str | None:
    """The suffix in FORMATS that a file name ends with, `.gz` or `.zst` aside; None if it is none of them."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def known_formats() -> str:
    """The suffixes that are understood, for messages."""
    return f"{', '.join(FORMATS)} (all but parquet also with {' or '.join(PACKED)})"


# --- files, one after another ---


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
    from autog.data import remote

    return {"commit": remote.hub_commit(str(source.hub), source.revision, notify, patience_seconds)}


def open_hub(
    source: Source, revision: Place, position: Place | None, notify: Notify, patience_seconds: float
) -> Reader:
    from autog.data import remote

    score = source.filter.score_column if source.filter else None
    wanted = remote.HubChoice(
        dataset=str(source.hub),
        commit=revision["commit"],
        config=source.config,
        split=source.split,
        data_dir=source.data_dir,
        data_files=source.data_files,
        columns=[source.column, *([score] if score else [])],
    )
    return HubReader(source, remote.HubRows(wanted, position, notify, patience_seconds))


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
