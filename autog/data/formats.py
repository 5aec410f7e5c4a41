"""The formats of files: (what was found, the place after it), one after another from a place in one file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from autog.data import plain
from autog.data.documents import Beat, Columnless, Damaged, Found, Place, Row, Skipped, encodable, first_line
from autog.data.plain import lines, text_stream
from autog.errors import UsageError
from autog.recipe import Source

if TYPE_CHECKING:
    import pyarrow

PIECE_BYTES = 16_384  # a text file longer than this is cut at the next blank line
BATCH_BYTES = 8 << 20  # uncompressed parquet values held at once, roughly
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


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


def read_text(file: IO[bytes], name: str, source: Source, place: Place, beat: Beat) -> Iterator[tuple[Found, Place]]:
    """The file as one document; a longer one in pieces cut at blank lines, without ever being held as a whole."""
    stream, codec, offset = text_stream(file, source.encoding, place.get("offset", 0), beat)
    piece, began, too_long = bytearray(), offset, False
    for line, size in lines(stream, "\n".encode(codec), beat):
        offset += size
        too_long = too_long or line is None or len(piece) + size > plain.LONGEST_ROW_BYTES
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
