"""Reading from far away so that it ends in one of two ways: with the right bytes, or with a sentence that says why not.

One policy for all of it (`Patience`): time-outs are short, what may pass is tried again with growing, jittered waits,
every try is told, and after `patience_seconds` without a new byte it is given up. `AUTOG_READ_TIMEOUT_SECONDS` (30)
is how long a silent connection is waited for, `AUTOG_RETRY_SECONDS` (1) the first wait between two tries.
"""

from __future__ import annotations

import email.utils
import os
import random
import re
import threading
import time

from autog.data.documents import BEAT_SECONDS, Notify
from autog.errors import AutogError

CONNECT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 60.0
PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # statuses that another try may cure


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
