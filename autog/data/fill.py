"""Source -> split -> tokens -> store: the background process that fills one store, and what it is told to do."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autog.data.documents import Beat, Document, Skipped
from autog.data.process import Lines, die_with_parent
from autog.data.sources import Reader, open_source
from autog.data.store import SPLIT_RULE, Split, StoreWriter, is_held_out, text_hash
from autog.errors import AutogError, UsageError
from autog.hooks import pause
from autog.recipe import Source
from autog.tokens import Tokenizer

COMMIT_TOKENS = 4_000_000
COMMIT_SECONDS = 1.0
SHOWN_SKIPS = 3
CHECKED_DOCUMENTS = 20

Event = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """Everything a filler needs to know; plain data, so that it can be handed to another process."""

    source: dict[str, Any]
    facts: dict[str, Any]
    directory: str
    tokenizer: str
    train_tokens: int | None
    val_tokens: int | None
    patience_seconds: float

    @property
    def name(self) -> str:
        return self.source["name"]

    def enough(self, train: int, val: int) -> bool:
        """Whether the run's need is met; a need of None is the whole source."""
        if self.train_tokens is None or self.val_tokens is None:
            return False
        return train >= self.train_tokens and val >= self.val_tokens


def store_facts(
    identity: dict[str, Any], revision: dict[str, Any], tokenizer: Tokenizer, share: float, evaluated_only: bool
) -> dict[str, Any]:
    """What decides the tokens of a store, and so its key."""
    return {
        "identity": identity,
        "revision": revision,
        "tokenizer": tokenizer.sha256,
        "split": {"rule": SPLIT_RULE, "validation": share, "train": not evaluated_only},
    }


def fill(job: Job, event: Event, stop: threading.Event) -> None:
    """Fills a store until the job's need is met, the source ends, or `stop` is set; goes on from the last commit."""
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    writer = StoreWriter(Path(job.directory), job.facts, tokenizer.vocab_size)
    while not writer.acquire():
        event("waiting", {})
        if stop.wait(0.5):
            return
    try:
        Filling(job, event, stop, tokenizer, writer).run()
    finally:
        writer.release()


class Filling:
    """One pass over a source with the store in hand."""

    def __init__(
        self, job: Job, event: Event, stop: threading.Event, tokenizer: Tokenizer, writer: StoreWriter
    ) -> None:
        self.job, self.event, self.stop = job, event, stop
        self.tokenizer, self.writer = tokenizer, writer
        self.split = job.facts["split"]
        self.shown: dict[str, int] = {}
        self.beat = Beat(event)
        self.lock = threading.Lock()  # what was taken and the place after it belong together
        self.place: dict[str, Any] | None = None
        self.read = 0
        self.ended = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Reads documents until there is enough; commits as it goes."""
        writer = self.writer
        if writer.manifest["done"] or self.job.enough(writer.tokens["train"], writer.tokens["val"]):
            self.report("progress")
            return
        source = Source.model_validate(self.job.source)
        reader = open_source(
            source, self.job.facts["revision"], writer.manifest["position"], self.event, self.job.patience_seconds
        )
        clock = threading.Thread(target=self.commit_by_the_clock, daemon=True)
        clock.start()
        try:
            whole = self.take_all(reader)
            self.ended.set()
            clock.join()
            writer.commit(None if whole else reader.position(), done=whole)
        finally:
            self.ended.set()
            clock.join()
            reader.close()
        self.report("progress")

    def take_all(self, reader: Reader) -> bool:
        """Takes documents until there is enough; whether the source itself ended."""
        for item in reader:
            with self.lock:
                self.take(item)
                item = None  # a long one should not stay while the next is read
                self.place = reader.position()
                self.read += 1
                if self.failure is not None:
                    raise self.failure
                if self.job.enough(self.writer.tokens["train"], self.writer.tokens["val"]) or self.stop.is_set():
                    return False
                if self.writer.uncommitted >= COMMIT_TOKENS:
                    self.commit()
            pause("fill")
        return True

    def commit_by_the_clock(self) -> None:
        """Commits every second, also while the source says nothing: what has come can be trained on."""
        committed = 0
        while not self.ended.wait(COMMIT_SECONDS):
            with self.lock:
                if self.read == committed:
                    continue
                committed = self.read
                try:
                    self.commit()
                except Exception as error:  # raised by `take_all`, on the thread that fills
                    self.failure = error
                    return

    def commit(self) -> None:
        """Makes durable what was taken so far."""
        self.writer.commit(self.place)
        self.report("progress")

    def take(self, item: Document | Skipped) -> None:
        """Puts one document on its side of the split, or counts why it is not used."""
        if isinstance(item, Skipped):
            self.skip(item.reason, item.where, item.rows)
            return
        digest = text_hash(item.text)
        number = digest if item.group is None else text_hash(item.group)
        side: Split = "val" if is_held_out(number, self.split["validation"]) else "train"
        if side == "train" and not self.split["train"]:
            return
        try:
            if sum(self.writer.documents.values()) < CHECKED_DOCUMENTS:
                self.tokenizer.check([item.text], self.job.name)
            self.writer.append(side, self.ids(item.text), digest)
        except BaseException as error:
            # tiktoken's Rust panics are no Exception: one such document must not end the filling.
            if type(error).__name__ != "PanicException":
                raise
            self.skip("untokenizable", item.text[:80])

    def ids(self, text: str) -> Iterator[np.ndarray]:
        """A document's ids piece by piece: those of a long one are never all in memory.

        A document of 100 MB is filled within 700 MB, unless it is a jsonl row with a character beyond U+FFFF (an emoji)
        in it: then Python keeps four bytes for each character, once for the row and once for its text.
        """
        for piece in self.tokenizer.document_pieces(text):
            yield piece
            self.beat()

    def skip(self, reason: str, where: str, rows: int = 1) -> None:
        """Counts rows that are not used; the first few of a kind are shown."""
        self.writer.skip(reason, rows)
        self.shown[reason] = self.shown.get(reason, 0) + 1
        if self.shown[reason] <= SHOWN_SKIPS and not reason.startswith(("empty", "filtered")):
            self.event("skipped", {"reason": reason, "where": where})

    def report(self, kind: str) -> None:
        """Says how far the store is."""
        manifest = self.writer.manifest
        self.event(
            kind,
            {
                "train_tokens": manifest["train"]["tokens"],
                "val_tokens": manifest["val"]["tokens"],
                "done": manifest["done"],
                "skipped": manifest["skipped"],
                "duplicates": manifest["duplicates"],
                "read": self.read,
            },
        )


# -- the process ------------------------------------------------------------------------------------------------------


def set_when_closed(stop: threading.Event) -> None:
    """Reads standard input until it closes, which is how the trainer says that it is enough."""
    while sys.stdin.read(1):
        pass
    stop.set()


def main() -> None:
    """Runs one job given as a JSON line on standard input; events go to standard output as JSON lines."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    message = json.loads(sys.stdin.readline())
    die_with_parent(message["parent"])
    job, stop = Job(**message["job"]), threading.Event()
    threading.Thread(target=set_when_closed, args=(stop,), daemon=True).start()
    lines = Lines()  # Arrow's threads and the committing one have things to say, too

    def event(kind: str, facts: dict[str, Any]) -> None:
        lines.write(json.dumps({"event": kind, **facts}))

    try:
        fill(job, event, stop)
    except UsageError as error:
        event("error", {"message": str(error), "usage": True})
    except AutogError as error:
        event("error", {"message": str(error), "usage": False})
    except OSError as error:
        event("error", {"message": could_not_write(job, error), "usage": False})
    else:
        event("finished", {})
    # Arrow's and other libraries' threads must not turn a finished job into a crash at exit.
    os._exit(0)


def could_not_write(job: Job, error: OSError) -> str:
    """What to do when the disk says no."""
    return (
        f"filling {job.directory} failed ({error.strerror or error}): free some space or mend what is wrong with the "
        "disk, and repeat the command; what was filled so far is kept"
    )


def as_message(job: Job) -> str:
    """The line that starts a filler process."""
    return json.dumps({"parent": os.getpid(), "job": asdict(job)}) + "\n"


if __name__ == "__main__":
    main()
