"""What local sources promise: every row is a document or is counted, and reading goes on exactly where it stopped."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from autog.data import plain
from autog.data.sources import Document, Skipped, changed, identity, open_source, quiet, resolve
from autog.errors import UsageError
from autog.recipe import Source

ROWS = [
    {"text": f"Document {number}: caffè, naïve, 日本 {'x' * (number % 50)}", "score": number / 100}
    for number in range(300)
]
TEXTS = [row["text"] for row in ROWS]


def source(**fields: Any) -> Source:
    return Source(name="notes", weight=1, **fields)


def read(chosen: Source, position: dict[str, Any] | None = None) -> list[Document | Skipped]:
    reader = open_source(chosen, resolve(chosen), position, quiet)
    try:
        return list(reader)
    finally:
        reader.close()


def texts(chosen: Source) -> list[str]:
    return [item.text for item in read(chosen) if isinstance(item, Document)]


def reasons(chosen: Source) -> list[str]:
    return [item.reason for item in read(chosen) if isinstance(item, Skipped)]


def jsonl(rows: list[dict[str, Any]], encoding: str = "utf-8") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def restarts_exactly(chosen: Source) -> None:
    """From the position after every item the rest comes out, through JSON, and twice in a row."""
    revision = resolve(chosen)
    reader = open_source(chosen, revision, None, quiet)
    items, positions = [], [json.dumps(reader.position())]
    for item in reader:
        items.append(item)
        positions.append(json.dumps(reader.position()))
    stops = {0, 1, len(items) // 2, len(items) - 1, len(items)} | set(random.Random(0).choices(range(len(items)), k=12))
    for stop in stops:
        again = open_source(chosen, revision, json.loads(positions[stop]), quiet)
        rest = []
        for item in again:
            rest.append(item)
            assert json.dumps(again.position()) == positions[stop + len(rest)]
        assert rest == items[stop:]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gz", "zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_jsonl_gives_every_row_and_restarts_exactly(tmp_path: Path, pack: Any, encoding: str) -> None:
    name = "a.jsonl" + {bytes: "", gzip.compress: ".gz", zstandard.compress: ".zst"}[pack]
    (tmp_path / name).write_bytes(pack(jsonl(ROWS, encoding)))
    # A byte order mark tells the encoding by itself.
    chosen = source(path=str(tmp_path), **({"encoding": encoding} if encoding == "utf-16-be" else {}))
    assert texts(chosen) == TEXTS
    restarts_exactly(chosen)


def test_parquet_gives_every_row_and_restarts_exactly(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ROWS[:200], row_group_size=64)
    write_parquet(tmp_path / "b.parquet", ROWS[200:], row_group_size=7, compression="zstd")
    chosen = source(path=str(tmp_path / "*.parquet"), filter={"score_column": "score", "min_score": 0.5})
    assert texts(chosen) == TEXTS[50:]
    assert reasons(chosen) == ["filtered: min_score"] * 50
    restarts_exactly(chosen)


def test_text_files_are_documents_cut_at_blank_lines_above_16_kb(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}. " + "word " * 300 for number in range(40)]
    (tmp_path / "long.md").write_text("\n\n".join(paragraphs), newline="\r\n")
    (tmp_path / "short.txt").write_text("\n\none\n\ntwo\n")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    chosen = source(path=str(tmp_path))
    pieces = texts(chosen)
    assert pieces[-1] == "one\n\ntwo"
    assert [line.strip() for piece in pieces[:-1] for line in piece.split("\n\n")] == [
        line.strip() for line in paragraphs
    ]
    assert all(16_384 <= len(piece.encode()) < 20_000 for piece in pieces[:-2])
    restarts_exactly(chosen)


def test_utf_16_text_is_cut_at_whole_characters(tmp_path: Path) -> None:
    text = "\n\n".join("\u0a0a\u000d\u0a00 ਊ" * 900 for _ in range(9)).replace("\r", "r")
    (tmp_path / "a.txt").write_text(text, encoding="utf-16", newline="")
    chosen = source(path=str(tmp_path / "a.txt"))
    assert "\n\n".join(texts(chosen)) == text
    restarts_exactly(chosen)


def test_bad_rows_are_counted_by_reason_and_named(tmp_path: Path) -> None:
    good = json.dumps({"text": "good"}).encode()
    lines = [good, b'{"text": "torn', b"[1]", b'{"other": 1}', b'{"text": 7}', b'{"text": null}', b'{"text": "  "}']
    lines += [
        b'{"text": "\\ud800"}',
        b"",
        b'{"text": "\\ud83d\\ude00"}',
        b"[" * 100_000,
        *[good] * 200,
        b'{"text": "\xff"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    items = read(source(path=str(tmp_path / "a.jsonl")))
    skipped = [(item.reason, item.where.rpartition(":")[2]) for item in items if isinstance(item, Skipped)]
    assert skipped == [
        ("malformed", "2"), ("malformed", "3"), ("no column", "4"), ("not text", "5"), ("empty", "6"), ("empty", "7"),
        ("lone surrogates", "8"), ("malformed", "11"), ("undecodable", "212"),
    ]  # fmt: skip
    assert len(items) - len(skipped) == 202
    restarts_exactly(source(path=str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_row_that_is_too_long_is_skipped_without_holding_it(
    tmp_path: Path, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "LONGEST_ROW_BYTES", 1 << 20)
    huge = b'{"text": "' + b"a" * 3_000_000 + b'"}\n'
    name = "a.jsonl" if pack is bytes else "a.jsonl.gz"
    (tmp_path / name).write_bytes(pack(jsonl(ROWS[:1]) + huge + jsonl(ROWS[1:2])))
    chosen = source(path=str(tmp_path / name))
    assert texts(chosen) == TEXTS[:2] and reasons(chosen) == ["too long"]
    (tmp_path / name).unlink()
    (tmp_path / "b.txt").write_bytes(b"short\n" + b"a" * 3_000_000 + b"\n\nnext")
    assert reasons(source(path=str(tmp_path))) == ["too long"] and texts(source(path=str(tmp_path))) == ["next"]


def test_filters_leave_out_and_say_why(tmp_path: Path) -> None:
    rows = [
        {"text": "x" * length, "score": score} for length, score in ((3, 1), (10, 1), (99, 1), (10, 0), (10, "high"))
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    rules = {"min_chars": 5, "max_chars": 50, "score_column": "score", "min_score": 0.5}
    chosen = source(path=str(tmp_path / "a.jsonl"), filter=rules)
    assert texts(chosen) == ["x" * 10]
    assert reasons(chosen) == [f"filtered: {why}" for why in ("min_chars", "max_chars", "min_score", "no score")]


def test_wiki40b_markers_become_titles_headings_and_paragraphs(tmp_path: Path) -> None:
    text = (
        "\n_START_ARTICLE_\nRoma\n_START_PARAGRAPH_\nRome is a city._NEWLINE_It is old.\n_START_SECTION_\nHistory\n"
        "_START_PARAGRAPH_\nIt began small."
    )
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": text}]))
    chosen = source(path=str(tmp_path / "a.jsonl"), clean="wiki40b")
    assert texts(chosen) == ["Roma\n\nRome is a city.\nIt is old.\n\nHistory\n\nIt began small."]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_wrong_column_is_an_error_that_lists_the_columns(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        write_parquet(tmp_path / name, ROWS)
    else:
        (tmp_path / name).write_bytes(jsonl(ROWS))
    with pytest.raises(UsageError, match=r"no column 'content'; it has text, score"):
        read(source(path=str(tmp_path / name), column="content"))


def test_a_column_of_numbers_in_parquet_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ROWS)
    with pytest.raises(UsageError, match="holds double, not text"):
        read(source(path=str(tmp_path / "a.parquet"), column="score"))


@pytest.mark.parametrize("size", [5, 400])
def test_a_wrong_encoding_is_an_error_that_names_a_likely_one(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "città e perché"}] * size, "cp1252"))
    with pytest.raises(UsageError, match=r"encoding: cp1252"):
        read(source(path=str(tmp_path / "a.jsonl")))
    assert texts(source(path=str(tmp_path / "a.jsonl"), encoding="cp1252"))[0] == "città e perché"
    (tmp_path / "b.txt").write_bytes("one two three".encode("utf-16-le") + b"\xd8\x00\xff\xff")
    with pytest.raises(UsageError, match=r"utf-16-le|cp1252|latin-1"):
        read(source(path=str(tmp_path / "b.txt"), encoding="ascii"))
    with pytest.raises(UsageError, match=r"encoding 'klingon' is not known"):
        resolve(source(path=str(tmp_path / "a.jsonl"), encoding="klingon"))


def test_a_json_array_in_a_jsonl_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS, indent=1))
    with pytest.raises(UsageError, match="has one per line"):
        read(source(path=str(tmp_path / "a.jsonl")))


def test_only_known_formats_are_taken_and_a_named_unknown_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.jsonl", "deep/a.ndjson", "deep/er/c.jsonl.gz", "image.png", ".hidden.jsonl"):
        content = jsonl(ROWS[:1])
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    names = [Path(entry[0]).name for entry in resolve(source(path=str(tmp_path)))["files"]]
    assert names == ["b.jsonl", "a.ndjson", "c.jsonl.gz"]
    with pytest.raises(UsageError, match=r"image\.png has no known format; known are \.jsonl"):
        resolve(source(path=str(tmp_path / "image.png")))
    with pytest.raises(UsageError, match=r"no files at .*nothing"):
        resolve(source(path=str(tmp_path / "nothing*")))


def test_a_relative_path_is_the_same_source_as_its_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    absolute = source(path=str(tmp_path / "a.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert identity(source(path="a.jsonl")) == identity(absolute)
    assert resolve(source(path="./a.jsonl")) == resolve(absolute)
    named = Source(name="other", weight=9, path="a.jsonl", language="it", license="mit")
    assert identity(named) == identity(absolute)
    assert identity(source(path="a.jsonl", filter={"min_chars": 1})) != identity(absolute)


def test_a_changed_or_vanished_file_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(jsonl(ROWS))
    chosen = source(path=str(tmp_path))
    revision = resolve(chosen)
    assert changed(chosen, revision) is None
    with (tmp_path / "b.jsonl").open("ab") as file:
        file.write(jsonl(ROWS[:1]))
    assert "b.jsonl changed" in str(changed(chosen, revision))
    with pytest.raises(UsageError, match=r"b\.jsonl changed"):
        list(open_source(chosen, revision, None, quiet))
    (tmp_path / "a.jsonl").unlink()
    assert "a.jsonl cannot be read" in str(changed(chosen, revision))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_a_torn_archive_gives_what_it_has_and_is_counted(tmp_path: Path, pack: Any) -> None:
    suffix = "gz" if pack is gzip.compress else "zst"
    many = [{"text": random.Random(number).randbytes(300).hex()} for number in range(2_000)]
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(jsonl(many))[:-20])
    (tmp_path / "b.jsonl").write_bytes(jsonl(ROWS))
    chosen = source(path=str(tmp_path))
    given = texts(chosen)
    assert 0 < len(given) - len(ROWS) <= 2_000 and given[-len(ROWS) :] == TEXTS
    assert "damaged" in reasons(chosen)
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(jsonl(many))[:10])
    with pytest.raises(UsageError, match="ends too early"):
        read(chosen)


def test_archives_of_several_members_are_read_whole(tmp_path: Path) -> None:
    halves = (jsonl(ROWS[:150]), jsonl(ROWS[150:]))
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)) + b"\0" * 512)
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, halves)))
    assert texts(source(path=str(tmp_path))) == TEXTS * 2


def test_a_damaged_row_group_is_skipped_with_its_count(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": random.Random(number).randbytes(100).hex()} for number in range(300)]
    write_parquet(path, rows, row_group_size=100, use_dictionary=False, compression="none", write_page_checksum=True)
    chunk = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    items = read(source(path=str(path)))
    lost = [item for item in items if isinstance(item, Skipped)]
    assert [(item.reason, item.rows) for item in lost] == [("damaged", 100)] and "row group 1" in lost[0].where
    assert [item.text for item in items if isinstance(item, Document)] == [
        row["text"] for row in rows[:100] + rows[200:]
    ]
    restarts_exactly(source(path=str(path)))
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(UsageError, match="not a readable parquet file"):
        read(source(path=str(path)))


MEMORY = """
import re, sys
from pathlib import Path
from autog.data.sources import Document, open_source, quiet, resolve
from autog.recipe import Source
chosen = Source(name="x", weight=1, path=sys.argv[1])
count = size = 0
for item in open_source(chosen, resolve(chosen), None, quiet):
    count += 1
    size += len(item.text) if isinstance(item, Document) else 0
# Not ru_maxrss: that begins with what the parent had.
print(count, size, int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["jsonl", "one.txt", "many.txt", "bomb.gz", "bomb.zst"])
def test_memory_stays_small_on_100_mb(tmp_path: Path, kind: str) -> None:
    text = ("Some words of an endless document, naïve ones. " * 20 + "\n") * 106_000
    path = tmp_path / {"jsonl": "a.jsonl", "bomb.gz": "a.jsonl.gz", "bomb.zst": "a.jsonl.zst"}.get(kind, "a.txt")
    if kind == "jsonl":
        path.write_text(json.dumps({"text": text}, ensure_ascii=False))
    elif kind == "one.txt":
        path.write_text(text)
    elif kind == "many.txt":
        path.write_text(text.replace(". Some words", ".\n\nSome words"))
    elif kind == "bomb.gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(600):
                file.write(b"a" * (1 << 20))
            file.write(b"\n" + jsonl(ROWS[:1]))
    else:
        buffer = io.BytesIO()
        with zstandard.ZstdCompressor().stream_writer(buffer, closefd=False) as file:
            for _ in range(600):
                file.write(b"a" * (1 << 20))
            file.write(b"\n" + jsonl(ROWS[:1]))
        path.write_bytes(buffer.getvalue())
    output = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
    ).stdout
    count, size, peak_mib = map(int, output.split())
    limit = {"many.txt": 120, "bomb.gz": 450, "bomb.zst": 450}.get(kind, 600)
    assert peak_mib < limit, f"{peak_mib} MiB for {count} items of {size} characters"
