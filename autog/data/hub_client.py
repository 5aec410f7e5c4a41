"""huggingface_hub's requests, made patient: whatever asks the hub for something gets it whole, or a final answer."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from autog.data.patience import CONNECT_SECONDS, PASSING, Passing, Patience, read_seconds, retry_after
from autog.data.remote import shown, strong, total_of
from autog.errors import AutogError

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
        if response.status_code not in (200, 206) or moved or (etag and now and strong(etag) != strong(now)):
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
