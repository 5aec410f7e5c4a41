"""What is read of a source before its run begins: one document to see that it can be read, and texts for a tokenizer.

Hub sources are read by a process of its own: `datasets` and Arrow keep threads that can abort a process at its exit,
and the trainer must never load them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

from autog.data.documents import Document
from autog.data.process import Lines, die_with_parent
from autog.data.sources import open_source
from autog.data.store import is_validation
from autog.errors import AutogError, UsageError
from autog.recipe import Recipe, Source

LOOKED_AT_ROWS = 1_000  # a filter may leave out the first ones
SEPARATE = {"hub"}  # kinds of sources that another process reads

Tell = Callable[[str, dict[str, Any]], None]


def require_document(recipe: Recipe, source: Source, revision: Any, tell: Tell) -> None:
    """UsageError if the beginning of a source shows that its fields are wrong or that nothing is in it."""
    count = 0
    with closing(first_rows(recipe, source, revision, tell)) as found:
        for item in found:
            count += 1
            if item is not None or count == LOOKED_AT_ROWS:
                return
    raise UsageError(
        f"source {source.name!r}: there is no document in it ({count} rows were left out): look at it and its filter"
    )


def training_documents(recipe: Recipe, source: Source, revision: Any, tell: Tell) -> Iterator[str]:
    """The texts of a source that are on the training side of the split."""
    share = recipe.validation_share(source)
    with closing(first_rows(recipe, source, revision, tell)) as found:
        for item in found:
            if item is not None and not is_validation(item.group or item.text, share):
                yield item.text


def first_rows(recipe: Recipe, source: Source, revision: Any, tell: Tell) -> Generator[Document | None]:
    """The documents of a source from its beginning, None for each row that is none; errors name the source."""
    reading = read_elsewhere if source.kind in SEPARATE else read_here
    try:
        yield from reading(source, revision, tell, recipe.data.patience_minutes * 60)
    except AutogError as error:
        raise type(error)(f"source {source.name!r}: {error}") from None


def read_here(source: Source, revision: Any, tell: Tell, patience_seconds: float) -> Iterator[Document | None]:
    """Reads in this process."""
    reader = open_source(source, revision, None, tell, patience_seconds)
    try:
        for item in reader:
            yield item if isinstance(item, Document) else None
    finally:
        reader.close()


def read_elsewhere(source: Source, revision: Any, tell: Tell, patience_seconds: float) -> Iterator[Document | None]:
    """Reads in a process of its own, which ends with this generator."""
    task = {"source": source.model_dump(mode="json", exclude_unset=True), "revision": revision}
    message = json.dumps({"parent": os.getpid(), "patience": patience_seconds, **task})
    command = [sys.executable, "-m", "autog.data.preview"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(message + "\n")
            process.stdin.flush()
            for line in process.stdout:
                kind, content = json.loads(line)
                if kind == "document":
                    yield content and Document(*content)
                elif kind == "end":
                    return
                elif kind == "error":
                    raise (UsageError if content["usage"] else AutogError)(content["message"])
                else:
                    tell(kind, content)
            raise AutogError(f"the process that read it ended with code {process.wait()}: what it printed says why")
        finally:
            process.kill()


def main() -> None:
    """Reads what a JSON line on standard input names; documents and events go to standard output as JSON lines."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, and this process ends with it
    message = json.loads(sys.stdin.readline())
    die_with_parent(message["parent"])
    lines = Lines()
    source = Source.model_validate(message["source"])

    def say(kind: str, content: Any) -> None:
        lines.write(json.dumps([kind, content]))

    try:
        for item in read_here(source, message["revision"], say, message["patience"]):
            say("document", item and [item.text, item.group])
    except AutogError as error:
        say("error", {"message": str(error), "usage": isinstance(error, UsageError)})
    else:
        say("end", None)
    os._exit(0)


if __name__ == "__main__":
    main()
