"""URLs as files: read from any byte on, whatever the network does, as long as they are what they were."""

from __future__ import annotations

import http.client
import io
import os
import re
import tempfile
import time
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from autog.data.documents import Notify
from autog.data.patience import CONNECT_SECONDS, PASSING, Passing, Patience, explain, read_seconds, retry_after
from autog.errors import UsageError

SLOWEST_BYTES = 1_024  # fewer than this within the read time-out is a stall, however politely they drip
SKIP_BYTES = 1 << 18
AT_LEAST_BYTES = 1 << 16  # taken from a connection at once, however little is asked for
BLOCK_BYTES = 4 << 20  # one request of a file that is read at many places
BLOCKS_KEPT = 8
REFUSED = {401: "it wants a login", 403: "access is denied", 404: "it is not there", 410: "it is gone"}


class Pinned(NamedTuple):
    """What a URL held when the run began; None where its server did not say."""

    url: str
    etag: str | None
    length: int | None
    last_modified: str | None


def require_http(url: str) -> None:
    """UsageError for anything but http and https."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UsageError(f"{url} is not an http or https URL: use `path` for files and `hub` for hub datasets")


def path_of(url: str) -> str:
    """The name at the end of a URL, without query."""
    return PurePosixPath(unquote(urlsplit(url).path)).name


def shown(url: str) -> str:
    """A URL as it may be printed: without the user, password or signature that it may carry."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def total_of(content_range: str | None) -> tuple[int | None, int | None]:
    """(first byte, length of the whole) from a Content-Range header."""
    match = re.fullmatch(r"\s*bytes\s+(?:(\d+)-\d+|\*)/(\d+|\*)\s*", content_range or "")
    if not match:
        return None, None
    return (int(match[1]) if match[1] else None), (int(match[2]) if match[2] != "*" else None)


def body_length(response: Any) -> int | None:
    """The length that a whole, unpacked body announces."""
    value = response.headers.get("Content-Length")
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    return int(value) if value and value.isdigit() and not packed else None


def request(session: Any, url: str, headers: dict[str, str]) -> Any:
    """One GET whose body is not read yet; Passing for what another try may cure, UsageError for what it cannot."""
    import requests

    headers = {"Accept-Encoding": "identity", "User-Agent": "autog", **headers}
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, read_seconds()))
    except (requests.exceptions.InvalidURL, requests.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
        raise UsageError(f"{shown(url)} cannot be read ({explain(error)}): correct the URL") from None
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UsageError(
                f"{shown(url)}: its certificate is not trusted: check the address and your clock"
            ) from None
        raise
    status = response.status_code
    if status in (200, 206, 416):
        return response
    wait = retry_after(response.headers.get("Retry-After"))
    response.close()
    if status in PASSING:
        raise Passing(f"HTTP status {status}", wait)
    why = REFUSED.get(status, "the server refuses")
    raise UsageError(f"{shown(url)}: HTTP status {status}, {why}: open it in a browser and correct the URL")


def passing_errors() -> tuple[type[BaseException], ...]:
    """What a try may fail with and be tried again."""
    import requests
    import urllib3

    return (Passing, OSError, requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException)


def probe(url: str, notify: Notify, patience_seconds: float) -> Pinned:
    """What a URL holds now, at the price of one byte."""
    import requests

    patience = Patience(shown(url), notify, patience_seconds)
    while True:
        try:
            with requests.Session() as session, request(session, url, {"Range": "bytes=0-0"}) as response:
                if response.status_code == 200:
                    length = body_length(response)
                else:
                    length = total_of(response.headers.get("Content-Range"))[1]
                return Pinned(url, response.headers.get("ETag"), length, response.headers.get("Last-Modified"))
        except passing_errors() as error:
            patience.wait(error)


class RemoteFile(io.RawIOBase):
    """A pinned URL as a seekable file: any failure on the way is cured by a new request from the same byte."""

    def __init__(self, pinned: Pinned, patience: Patience) -> None:
        import requests

        self.pinned, self.patience = pinned, patience
        self.length = pinned.length
        self.session = requests.Session()
        self.passing = passing_errors()
        self.response: Any = None
        self.place = 0  # of the reader
        self.at = 0  # of the open response
        self.end: int | None = None  # where the open response should end
        self.span: int | None = None  # bytes asked for at once; None: to the end
        self.ranges = True  # until the server ignores one
        self.furthest = 0
        self.recent, self.recent_at = memoryview(b""), 0  # what came last, so that looking at a beginning costs nothing

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset += self.size()
        elif whence == os.SEEK_CUR:
            offset += self.place
        self.place = max(0, offset)
        return self.place

    def size(self) -> int:
        """The file's length; a server that does not tell it has its file read once to find out."""
        if self.length is None:
            before, self.place = self.place, 0
            while self.read(SKIP_BYTES):
                pass
            self.length, self.place = self.place, before
        return self.length

    def readinto(self, target: Any) -> int:
        view, count = memoryview(target).cast("B"), 0
        while count < len(view) and (data := self.some(len(view) - count)):
            view[count : count + len(data)] = data
            count += len(data)
        return count

    def some(self, wanted: int) -> memoryview:
        """At most `wanted` bytes from the reader's place, whatever it takes; none at the end."""
        if not 0 <= self.place - self.recent_at < len(self.recent):
            self.recent, self.recent_at = memoryview(self.arrive(max(wanted, AT_LEAST_BYTES))), self.place
        inside = self.place - self.recent_at
        data = self.recent[inside : inside + wanted]
        self.place += len(data)
        return data

    def arrive(self, wanted: int) -> bytes:
        """The next bytes from the server, at most `wanted`, with as many tries as it takes; none at the end."""
        while self.length is None or self.place < self.length:
            try:
                data = self.attempt(wanted)
            except self.passing as error:
                self.hang_up()
                self.patience.wait(error)
                continue
            if self.place + len(data) > self.furthest:
                self.furthest = self.place + len(data)
                self.patience.progressed()
            return data
        return b""

    def attempt(self, wanted: int) -> bytes:
        """One try to read, over the open response where it stands at the right byte."""
        if self.response is not None and not self.at <= self.place <= self.at + SKIP_BYTES:
            self.hang_up()
        if self.response is None:
            self.connect(wanted)
        while self.at < self.place:
            if not self.receive(min(SKIP_BYTES, self.place - self.at)):
                break
        return self.receive(wanted)

    def receive(self, wanted: int) -> bytes:
        """What is there of the body; Passing if it ends before its time or only drips."""
        raw = self.response.raw
        data = raw.read1(wanted, decode_content=False) if hasattr(raw, "read1") else raw.read(min(wanted, 16_384))
        self.at += len(data)
        self.patience.beat()
        now = time.monotonic()
        self.dripped += len(data)
        if now - self.dripping_since > read_seconds():
            if self.dripped < SLOWEST_BYTES and data:
                raise Passing(f"only {self.dripped} bytes came in {read_seconds():g} s")
            self.dripped, self.dripping_since = 0, now
        if not data and wanted:
            ended, at, end = self.response, self.at, self.end
            self.hang_up()
            if end is not None and at < end:
                raise Passing(f"the body ended {end - at} bytes early")
            if end is None and ended is not None:
                self.length = at  # a body of unknown length ends where it ends
        elif self.at == self.end:
            self.hang_up()
        return data

    def connect(self, wanted: int) -> None:
        """Asks for the bytes from the reader's place; refuses content that is not the pinned one."""
        headers = {}
        if self.place or self.span:
            last = "" if self.span is None else str(self.place + max(self.span, wanted) - 1)
            headers["Range"] = f"bytes={self.place}-{last}"
            if self.pinned.etag and not self.pinned.etag.startswith("W/"):
                headers["If-Range"] = self.pinned.etag
        response = request(self.session, self.pinned.url, headers)
        try:
            self.check(response)
        except BaseException:
            response.close()
            raise
        self.response = response
        self.at, self.dripped, self.dripping_since = 0, 0, time.monotonic()
        if response.status_code == 206:
            self.at = self.place
            size = response.headers.get("Content-Length")
            self.end = self.place + int(size) if size and size.isdigit() else None
        else:
            self.ranges = self.ranges and "Range" not in headers
            self.end = body_length(response)

    def check(self, response: Any) -> None:
        """AutogError if the server's answer is about other content than the pinned, or about other bytes."""
        start, total = total_of(response.headers.get("Content-Range"))
        if response.status_code == 206 and start != self.place:
            raise Passing(f"the server sent bytes from {start} instead of {self.place}")
        if response.status_code == 200:
            total = body_length(response)
        said = (response.headers.get("ETag"), total, response.headers.get("Last-Modified"))
        names = ("ETag", "length", "Last-Modified")
        for name, now, then in zip(names, said, self.pinned[1:], strict=True):
            if name == "Last-Modified" and self.pinned.etag and said[0]:
                continue  # the ETag says it better: copies on several servers differ in their times
            if now is not None and then is not None and strong(now) != strong(then):
                raise UsageError(
                    f"{shown(self.pinned.url)} changed since the run began ({name} {then!r} became {now!r}): "
                    "put the old content back, or start a new run"
                )
        if response.status_code == 416:
            raise UsageError(f"{shown(self.pinned.url)} is shorter than when the run began: start a new run")

    def hang_up(self) -> None:
        """Ends the open response; one read to its end gives its connection back."""
        if self.response is not None:
            self.response.close()
            self.response = None

    def close(self) -> None:
        if not self.closed:
            self.hang_up()
            self.session.close()
        super().close()


def strong(value: Any) -> Any:
    """An ETag without its mark of weakness; anything else as it is."""
    return value.removeprefix("W/") if isinstance(value, str) else value


class Blocks(io.RawIOBase):
    """A remote file that is read at many places: whole blocks, the last few kept; copied to disk where Range fails."""

    def __init__(self, remote: RemoteFile) -> None:
        self.remote, self.place = remote, 0
        self.blocks: OrderedDict[int, bytes] = OrderedDict()
        self.copy: IO[bytes] | None = None
        remote.span = BLOCK_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.place}.get(whence)
        self.place = max(0, offset + (self.remote.size() if base is None else base))
        return self.place

    def readinto(self, target: Any) -> int:
        view, count = memoryview(target).cast("B"), 0
        while count < len(view) and (data := self.some(len(view) - count)):
            view[count : count + len(data)] = data
            count += len(data)
            self.place += len(data)
        return count

    def some(self, wanted: int) -> bytes | memoryview:
        """At most `wanted` bytes at the reader's place."""
        if self.copy is not None:
            self.copy.seek(self.place)
            return self.copy.read(wanted)
        index, inside = divmod(self.place, BLOCK_BYTES)
        if index not in self.blocks:
            self.remote.seek(index * BLOCK_BYTES)
            block = self.remote.read(BLOCK_BYTES) or b""
            if not self.remote.ranges:
                self.download()
                return self.some(wanted)
            self.blocks[index] = block
            if len(self.blocks) > BLOCKS_KEPT:
                self.blocks.popitem(last=False)
        self.blocks.move_to_end(index)
        return memoryview(self.blocks[index])[inside : inside + wanted]

    def download(self) -> None:
        """Copies the whole file to a temporary one: without Range every step back would fetch it again."""
        self.remote.span = None
        self.remote.seek(0)
        self.copy = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        while data := self.remote.read(SKIP_BYTES):
            self.copy.write(data)
        self.blocks.clear()

    def close(self) -> None:
        if self.copy is not None:
            self.copy.close()
        self.remote.close()
        super().close()


def open_remote(pinned: Pinned, notify: Notify, patience_seconds: float, random_access: bool) -> IO[bytes]:
    """The pinned URL as a file; `random_access` for formats that jump."""
    remote = RemoteFile(pinned, Patience(shown(pinned.url), notify, patience_seconds))
    return cast(IO[bytes], Blocks(remote) if random_access else remote)
