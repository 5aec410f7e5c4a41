"""A file's plain bytes: decompression, encodings, lines; all of it forward only and a bounded amount at a time."""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from autog.data.documents import Beat, Damaged
from autog.errors import UsageError

CHUNK_BYTES = 1 << 16  # read at once from a text or jsonl file; what a silent server sent before is used but for this
FEED_BYTES = 2_048  # compressed bytes unpacked at once: zstd's densest block makes 64 MiB of these, no bomb makes more
LONGEST_ROW_BYTES = 256 << 20


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
