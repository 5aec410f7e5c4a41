"""Reading from far away so that it ends in one of two ways: with the right bytes, or with a sentence that says why not.

One policy for all of it (`Patience`): time-outs are short, what may pass is tried again with growing, jittered waits,
every try is told, and after `patience_seconds` without a new byte it is given up. `AUTOG_READ_TIMEOUT_SECONDS` (30)
is how long a silent connection is waited for, `AUTOG_RETRY_SECONDS` (1) the first wait between two tries.
"""

from __future__ import annotations

import email.utils
import functools
import gc
import http.client
import io
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn, cast
from urllib.parse import unquote, urlsplit

from autog.errors import AutogError, UsageError

CONNECT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 60.0
BEAT_SECONDS = 2.0
SLOWEST_BYTES = 1_024  # fewer than this within the read time-out is a stall, however politely they drip
SKIP_BYTES = 1 << 18
AT_LEAST_BYTES = 1 << 16  # taken from a connection at once, however little is asked for
BLOCK_BYTES = 4 << 20  # one request of a file that is read at many places
BLOCKS_KEPT = 8
PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # statuses that another try may cure
REFUSED = {401: "it wants a login", 403: "access is denied", 404: "it is not there", 410: "it is gone"}
REMEMBER_ROWS = 500  # hub rows between two remembered states; the rest is counted
FRUITLESS_PASSES = 3

Notify = Callable[[str, dict[str, Any]], None]


def read_seconds() -> float:
    """How long a silent connection is waited for."""
    return float(os.environ.get("AUTOG_READ_TIMEOUT_SECONDS", "30"))


def first_wait_seconds() -> float:
    """The upper end of the first wait between two tries; it doubles from try to try."""
    return float(os.environ.get("AUTOG_RETRY_SECONDS", "1"))


class Passing(Exception):
    """A failure of one try that another try may cure; `after` is how long the server asked to wait."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Patience:
    """How often and how long one thing is tried again, and what is said meanwhile; safe to use from several threads."""

    def __init__(self, what: str, notify: Notify, seconds: float) -> None:
        self.what, self.notify, self.seconds = what, notify, seconds
        self.attempt, self.failing_since = 0, 0.0
        self.said = time.monotonic()
        self.lock = threading.Lock()

    def beat(self, kind: str = "alive") -> None:
        """Says `alive` (or, when data come, `working`) every few seconds."""
        now = time.monotonic()
        with self.lock:
            due = now - self.said >= BEAT_SECONDS
            if due:
                self.said = now
        if due:
            self.notify(kind, {})

    def progressed(self) -> None:
        """New bytes came: patience starts anew."""
        self.attempt = 0
        self.beat("working")

    def wait(self, error: BaseException) -> None:
        """Waits for the next try; AutogError when patience is at its end."""
        now = time.monotonic()
        if self.attempt == 0:
            self.failing_since = now
        self.attempt += 1
        left = self.seconds - (now - self.failing_since)
        if left <= 0:
            raise AutogError(
                f"{self.what} could not be read for {self.seconds / 60:g} minutes (last error: {explain(error)}): "
                "check the network and repeat the command; what was read is kept"
            ) from error
        asked = error.after if isinstance(error, Passing) else None
        pause = min(left, self.jittered() if asked is None else max(asked, first_wait_seconds()))
        facts = {"attempt": self.attempt, "error": explain(error), "wait_seconds": round(pause, 3)}
        self.notify("retry", facts)
        until = time.monotonic() + pause
        while (rest := until - time.monotonic()) > 0:
            time.sleep(min(rest, BEAT_SECONDS))
            self.beat()

    def jittered(self) -> float:
        """Full jitter under a doubling ceiling: many readers that failed together do not come back together."""
        first = first_wait_seconds()
        ceiling = min(LONGEST_WAIT_SECONDS, first * 2.0 ** min(self.attempt, 20))
        return random.uniform(min(first, ceiling), ceiling)


def explain(error: BaseException) -> str:
    """A failure in a few words, without the wrappings that HTTP libraries put around it."""
    if isinstance(error, Passing):
        return str(error)
    chain: list[BaseException] = [error]
    while len(chain) < 8:
        last = chain[-1]
        inner = getattr(last, "reason", None) or (last.args[0] if last.args else None)
        inner = inner if isinstance(inner, BaseException) else (last.__cause__ or last.__context__)
        if inner is None or inner in chain:
            break
        chain.append(inner)
    if any("timeout" in type(link).__name__.lower() or isinstance(link, TimeoutError) for link in chain):
        connecting = any("connecttimeout" in type(link).__name__.lower() for link in chain)
        return "no answer to connecting" if connecting else f"nothing came for {read_seconds():g} s"
    root = next((link for link in chain if isinstance(link, OSError) and link.strerror), chain[-1])
    return (getattr(root, "strerror", None) or str(root) or type(root).__name__).splitlines()[0][:200]


def retry_after(value: str | None) -> float | None:
    """The Retry-After header in seconds, from now; a day is the most that is believed."""
    if not value:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return min(86_400.0, float(value))
    try:
        return min(86_400.0, max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()))
    except (ValueError, TypeError):
        return None


# --- URLs ---


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
            if now is not None and then is not None and plain(now) != plain(then):
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


def plain(value: Any) -> Any:
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


# --- the hub ---

ACTIVE: list[Patience] = []  # whose patience the requests of huggingface_hub use now; the last one counts


@functools.cache
def install_client() -> None:
    """Sends every request of huggingface_hub in this process through the patience that is active.

    The library and `datasets` retry by themselves, with time-outs and waits that add up to minutes without a word; what
    comes out of this client is either whole or final, so theirs never begins.
    """
    import huggingface_hub

    usual = huggingface_hub.get_session()
    base = next(kind for kind in type(usual).__mro__ if kind.__name__ == "Client")
    library = sys.modules[base.__module__.partition(".")[0]]  # httpx2, or httpx in huggingface_hub 1
    client = patient_client(library)
    hooks = usual.event_hooks  # they carry the library's offline mode
    huggingface_hub.set_client_factory(lambda: client(event_hooks=hooks, follow_redirects=True))


@functools.cache
def quiet_datasets() -> None:
    """Leaves all trying again to the patience that is active, and the screen to autog."""
    import datasets.config

    datasets.disable_progress_bars()
    # Five seconds of sleep per close, meant for pyarrow 24 and older, go too.
    settings = {"SLEEP_TIME_ON_THREADS_SHUTDOWN": 0, "STREAMING_READ_MAX_RETRIES": 1, "STREAMING_OPEN_MAX_RETRIES": 1}
    for name, value in {**settings, "STREAMING_READ_RETRY_INTERVAL": 0, "STREAMING_OPEN_RETRY_INTERVAL": 0}.items():
        setattr(datasets.config, name, value)


class Continued:
    """A body that survives its connection: the rest comes from a new request for the rest."""

    def __init__(self, client: Any, asked: Any, response: Any, patience: Patience, failure: type[Exception]) -> None:
        self.client, self.asked, self.patience, self.failure = client, asked, patience, failure
        self.response, self.stream = response, response.stream
        self.start, self.last = asked_range(asked.headers.get("Range"))
        # A server that ignores the range sends all of it; the libraries above would take it for the part.
        self.drop = self.start if response.status_code == 200 else 0
        self.reached = self.start  # the byte of the file that comes next
        self.whole = response.headers.get("Content-Encoding", "identity") == "identity"

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                yield from self.received()
                return
            except (self.failure, Passing) as error:
                if not self.whole or self.asked.method != "GET":
                    raise
                self.reopen(self.reached, error)

    def received(self) -> Iterator[bytes]:
        """The wanted bytes of the response that is open now."""
        left = None if self.last is None else self.last + 1 - self.reached
        for chunk in self.stream:
            self.patience.progressed()
            dropped = min(self.drop, len(chunk))
            self.drop -= dropped
            chunk = chunk[dropped:] if left is None else chunk[dropped : dropped + left]
            left = None if left is None else left - len(chunk)
            if chunk:
                self.reached += len(chunk)
                yield chunk
            if left == 0:
                return

    def reopen(self, place: int, error: BaseException) -> None:
        """Asks for the rest of the body."""
        self.stream.close()
        self.patience.wait(error)
        headers = {key: value for key, value in self.asked.headers.items() if key.lower() != "range"}
        headers["Range"] = f"bytes={place}-{'' if self.last is None else self.last}"
        again = self.client.build_request("GET", self.asked.url, headers=headers)
        response = self.client.whole_try(again, self.patience)
        etag, now = self.response.headers.get("ETag"), response.headers.get("ETag")
        moved = response.status_code == 206 and total_of(response.headers.get("Content-Range"))[0] != place
        if response.status_code not in (200, 206) or moved or (etag and now and plain(etag) != plain(now)):
            response.close()
            raise AutogError(
                f"{shown(str(self.asked.url))} changed or went away while it was read (HTTP status "
                f"{response.status_code}): repeat the command"
            ) from error
        self.stream, self.drop = response.stream, place if response.status_code == 200 else 0

    def close(self) -> None:
        self.stream.close()


def patient_client(library: Any) -> Any:
    """The Client of httpx or httpx2 that tries again what may pass, and goes on in the middle of a body."""

    class Stream(library.SyncByteStream):
        """The shape in which the library takes a body."""

        def __init__(self, body: Continued) -> None:
            self.body = body

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.body)

        def close(self) -> None:
            self.body.close()

    class PatientClient(library.Client):
        """Requests with our time-outs, waits and notices."""

        def send(self, request: Any, *, stream: bool = False, **rest: Any) -> Any:
            if not ACTIVE or request.url.host != endpoint_host():
                # Side services such as the dataset viewer: `datasets` can do without them, so nobody waits for them.
                request.extensions["timeout"] = library.Timeout(read_seconds(), connect=CONNECT_SECONDS).as_dict()
                return super().send(request, stream=stream, **rest)
            patience = ACTIVE[-1]
            while True:
                response = self.whole_try(request, patience, **rest)
                response.stream = Stream(Continued(self, request, response, patience, library.TransportError))
                if stream:
                    return response
                try:
                    response.read()
                    return response
                except (library.TransportError, Passing) as error:
                    response.close()
                    patience.wait(error)

        def whole_try(self, request: Any, patience: Patience, **rest: Any) -> Any:
            """Tries until there is an answer that is no passing failure."""
            timeout = library.Timeout(read_seconds(), connect=CONNECT_SECONDS)
            request.extensions["timeout"] = timeout.as_dict()
            while True:
                try:
                    response = super().send(request, stream=True, **rest)
                except library.TransportError as error:
                    patience.wait(error)
                    continue
                if response.status_code not in PASSING:
                    return response
                after = retry_after(response.headers.get("Retry-After"))
                response.close()
                patience.wait(Passing(f"HTTP status {response.status_code}", after))

    return PatientClient


def endpoint_host() -> str:
    """The host of the hub in use."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname or ""


def asked_range(header: str | None) -> tuple[int, int | None]:
    """First and last byte of a Range header; from 0 without one."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    return (int(match[1]), int(match[2]) if match[2] else None) if match else (0, None)


class active:
    """Makes a patience the one that huggingface_hub's requests use, within a `with`."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience

    def __enter__(self) -> None:
        install_client()
        ACTIVE.append(self.patience)

    def __exit__(self, *failure: object) -> None:
        ACTIVE.remove(self.patience)


def page(dataset: str) -> str:
    """Where a person looks at a dataset."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/datasets/{dataset}"


def refuse_gated(dataset: str) -> NoReturn:
    """UsageError for a dataset whose conditions were not accepted."""
    raise UsageError(
        f"the dataset {dataset} is gated: visit {page(dataset)}, accept its conditions, and put a token of that "
        "account into the environment variable HF_TOKEN"
    ) from None


def hub_commit(dataset: str, revision: str, notify: Notify, patience_seconds: float) -> str:
    """The commit that a revision names now; UsageError for a dataset that this user cannot read."""
    import huggingface_hub
    from huggingface_hub import errors

    with active(Patience(f"the hub dataset {dataset}", notify, patience_seconds)):
        api = huggingface_hub.HfApi()
        try:
            info = api.dataset_info(dataset, revision=revision)
            if getattr(info, "gated", False):
                api.auth_check(dataset, repo_type="dataset")
        except errors.GatedRepoError:
            refuse_gated(dataset)
        except errors.RevisionNotFoundError:
            raise UsageError(f"the dataset {dataset} has no revision {revision!r}: see {page(dataset)}") from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise UsageError(
                f"there is no dataset {dataset!r} at {page(dataset)}, or it is private: check the name there; for a "
                "private one put your token into the environment variable HF_TOKEN"
            ) from None
        except errors.OfflineModeIsEnabled:
            raise UsageError(
                f"the dataset {dataset} cannot be resolved while HF_HUB_OFFLINE is set: unset it for the first start"
            ) from None
        except errors.HfHubHTTPError as error:
            raise UsageError(f"the hub refuses {dataset} ({one_line(error)}): see {page(dataset)}") from None
        except (ValueError, KeyError) as error:
            raise AutogError(f"the hub's answer about {dataset} is not understood ({one_line(error)})") from error
    return str(info.sha)


def one_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@dataclass(frozen=True)
class HubChoice:
    """Which rows of which dataset."""

    dataset: str
    commit: str
    config: str | None
    split: str
    data_dir: str | None
    data_files: str | list[str] | None
    columns: list[str]


class HubRows:
    """The rows of a streamed hub dataset, with a position that is exact after every row.

    `datasets` tells its state; one is remembered every few hundred rows and the rows since are counted.
    """

    def __init__(self, choice: HubChoice, position: dict[str, Any] | None, notify: Notify, seconds: float) -> None:
        self.choice = choice
        self.patience = Patience(f"the hub dataset {choice.dataset}", notify, seconds)
        self.state: dict[str, Any] | None = None
        self.since, self.row = 0, 0
        if position:
            self.state, self.since, self.row = position["state"], position["since"], position["row"]
        self.iterator: Any = None

    def position(self) -> dict[str, Any]:
        return {"state": self.state, "since": self.since, "row": self.row}

    def close(self) -> None:
        """Lets go of the stream while the interpreter still runs: Arrow's threads abort a process that ends first."""
        if self.iterator is not None:
            self.iterator.close()
            self.iterator = None
            gc.collect()

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        fruitless, before = 0, self.row
        while True:
            try:
                yield from self.rows()
                return
            except (AutogError, GeneratorExit):
                raise
            except Exception as error:
                self.close()
                raise_ours(error)
                fruitless = fruitless + 1 if self.row == before else 1
                before = self.row
                if fruitless >= FRUITLESS_PASSES:
                    raise AutogError(
                        f"the hub dataset {self.choice.dataset} cannot be read past row {self.row} "
                        f"({type(error).__name__}: {one_line(error)}): see {page(self.choice.dataset)}"
                    ) from error
                self.patience.wait(error)

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """One pass over the stream from the position."""
        with active(self.patience):
            dataset = stream_dataset(self.choice)
            if self.state is not None:
                dataset.load_state_dict(self.state)
            self.iterator = iter(dataset)
        skip = self.since
        while True:
            with active(self.patience):
                row = next(self.iterator, None)
                if row is None:
                    self.close()
                    return
                if skip:
                    skip -= 1
                    self.patience.beat("working")
                    continue
                self.since += 1
                self.row += 1
                if self.since >= REMEMBER_ROWS:
                    self.state, self.since = dataset.state_dict(), 0
            self.patience.attempt = 0
            yield self.row - 1, row


def raise_ours(error: BaseException) -> None:
    """Raises our own error if one of the libraries has wrapped it."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, AutogError):
            raise link
        link = link.__cause__ or link.__context__


def stream_dataset(choice: HubChoice) -> Any:
    """The streamed dataset with the wanted columns only; UsageError for a choice that the dataset does not have."""
    builder = hub_builder(choice)
    try:
        dataset = builder.as_streaming_dataset(split=choice.split)
    except ValueError as error:
        if "split" in str(error).lower():
            raise UsageError(f"{choice.dataset}: {one_line(error)}: set `split` to one of them") from None
        raise
    except FileNotFoundError as error:
        raise_ours(error)
        raise_gated(error, choice.dataset)
        raise
    names = dataset.column_names or list(next(iter(dataset), {}))
    lacking = [column for column in choice.columns if column not in names]
    if lacking:
        raise UsageError(
            f"{choice.dataset} has no column {lacking[0]!r}; it has {', '.join(names) or 'none'}: name one of them"
        )
    if hasattr(builder.config, "columns") and builder.config.columns is None:
        builder.config.columns = list(dict.fromkeys(choice.columns))  # parquet: the others are not even fetched
        return builder.as_streaming_dataset(split=choice.split)
    return dataset.select_columns(list(dict.fromkeys(choice.columns)))


def hub_builder(choice: HubChoice) -> Any:
    """The dataset's builder at the pinned commit."""
    import datasets
    import datasets.exceptions

    quiet_datasets()
    if Path(choice.dataset).exists():
        raise UsageError(
            f"a file or folder {choice.dataset} in the current directory hides the hub dataset of that name: "
            "start elsewhere, or use `path` if the local one is meant"
        )
    try:
        return datasets.load_dataset_builder(
            choice.dataset,
            choice.config,
            data_dir=choice.data_dir,
            data_files=choice.data_files,
            revision=choice.commit,
        )
    except (datasets.exceptions.DataFilesNotFoundError, FileNotFoundError) as error:
        raise_ours(error)
        raise_gated(error, choice.dataset)
        wanted = ", ".join(f"{key} {value!r}" for key in ("data_dir", "data_files") if (value := getattr(choice, key)))
        raise UsageError(
            f"{choice.dataset} has no data files{f' for {wanted}' if wanted else ''}: see {page(choice.dataset)}"
        ) from None
    except ValueError as error:
        raise_ours(error)
        if "config" in str(error).lower():
            raise UsageError(f"{choice.dataset}: {flat(error)}: set `config` to one of them") from None
        raise
    except RuntimeError as error:
        raise_ours(error)
        if "script" in str(error).lower():
            raise UsageError(
                f"{choice.dataset} is a loading script, which is no longer run: use its parquet copy "
                "(`revision: refs/convert/parquet`) or another copy of it"
            ) from None
        raise


def raise_gated(error: BaseException, dataset: str) -> None:
    """The sentence about gated datasets, if that is what is behind an error."""
    from huggingface_hub import errors

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, errors.GatedRepoError):
            refuse_gated(dataset)
        link = link.__cause__ or link.__context__


def flat(error: BaseException) -> str:
    """An error's whole text on one line."""
    return " ".join(str(error).split())[:600]
