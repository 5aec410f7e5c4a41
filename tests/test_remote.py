"""What remote sources promise: whatever the network does, the same documents, or a sentence that says why not."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from servers import Fault, Hub, Repository, Site, running

from autog.data.sources import Document, open_source, quiet, resolve
from autog.errors import AutogError, UsageError
from autog.recipe import Source

ROWS = [
    {"text": f"{number} {random.Random(number).randbytes(200).hex()}", "score": number, "other": "x"}
    for number in range(3_000)
]
TEXTS = [row["text"] for row in ROWS]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=500)
    return buffer.getvalue()


FILES = {
    "/a.jsonl": JSONL,
    "/a.jsonl.gz": gzip.compress(JSONL, 1),
    "/a.jsonl.zst": zstandard.compress(JSONL),
    "/a.parquet": as_parquet(ROWS),
}
RARE = ("no ranges", "no lengths", "neither")  # servers that are short of manners


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOG_READ_TIMEOUT_SECONDS", "0.4")
    monkeypatch.setenv("AUTOG_RETRY_SECONDS", "0.02")


@pytest.fixture
def site() -> Iterator[Site]:
    with running(Site(files=dict(FILES))) as served:
        yield served


class Notices(list[tuple[str, dict[str, Any]]]):
    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        self.append((kind, facts))

    @property
    def retries(self) -> list[dict[str, Any]]:
        return [facts for kind, facts in self if kind == "retry"]


def source(url: str | list[str], **fields: Any) -> Source:
    return Source(name="web", weight=1, url=url, **fields)


def read(
    chosen: Source, revision: dict[str, Any] | None = None, notify: Any = quiet, patience: float = 60
) -> list[str]:
    reader = open_source(chosen, revision or resolve(chosen), None, notify, patience)
    try:
        return [item.text for item in reader if isinstance(item, Document)]
    finally:
        reader.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("manner", ["full", *(pytest.param(rare, marks=pytest.mark.slow) for rare in RARE)])
def test_every_fault_is_survived_and_every_document_comes_once(site: Site, name: str, manner: str) -> None:
    site.ranges = manner not in ("no ranges", "neither")
    site.lengths = site.etags = manner not in ("no lengths", "neither")
    chosen, notices = source(site.url + name), Notices()
    revision = resolve(chosen)
    site.faults = [
        Fault("status", 503), Fault("cut", after=100_000), Fault("reset", after=50_000), Fault("stall", after=70_000),
        Fault("drip", after=10_000), Fault("reset"), Fault("status", 408), Fault("ignore range"),
    ]  # fmt: skip
    assert read(chosen, revision, notices) == TEXTS
    assert sum(fault.count for fault in site.faults) == 0
    assert len(notices.retries) >= 7
    assert all(set(facts) == {"attempt", "error", "wait_seconds"} for facts in notices.retries)


@pytest.mark.parametrize("name", FILES)
def test_reading_goes_on_exactly_from_any_position(site: Site, name: str) -> None:
    chosen = source([site.url + name, site.url + "/a.jsonl"])
    revision = resolve(chosen)
    reader, positions, texts = open_source(chosen, revision, None, quiet), [], []
    for item in reader:
        assert isinstance(item, Document)
        texts.append(item.text)
        positions.append(json.dumps(reader.position()))
    assert texts == TEXTS * 2
    for stop in (0, 1, 499, 500, 1_234, 2_999, 3_000, 5_555, 5_999):
        rest = open_source(chosen, revision, json.loads(positions[stop]), quiet)
        assert [item.text for item in rest if isinstance(item, Document)] == texts[stop + 1 :]


def test_a_restart_fetches_only_the_rest(site: Site) -> None:
    chosen = source(site.url + "/a.jsonl")
    revision = resolve(chosen)
    reader = open_source(chosen, revision, None, quiet)
    stream = iter(reader)
    for _ in range(2_500):
        next(stream)
    site.requests.clear()
    list(open_source(chosen, revision, reader.position(), quiet))
    asked = [requested for _, _, requested, _ in site.requests if requested]
    assert asked == [f"bytes={reader.position()['place']['offset']}-"]


def test_changed_content_is_refused_by_url(site: Site) -> None:
    chosen = source(site.url + "/a.jsonl")
    revision = resolve(chosen)
    site.files["/a.jsonl"] = JSONL.replace(b"text", b"test", 1)
    with pytest.raises(UsageError, match=r"a\.jsonl changed since the run began"):
        read(chosen, revision)


def test_content_that_changes_in_the_middle_is_refused(site: Site) -> None:
    chosen = source(site.url + "/a.jsonl")
    revision = resolve(chosen)
    site.faults = [Fault("cut", after=500_000)]
    stream = iter(open_source(chosen, revision, None, quiet))
    next(stream)
    site.files["/a.jsonl"] = JSONL.replace(b"text", b"test", 1)
    with pytest.raises(UsageError, match="changed since the run began"):
        list(stream)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_another_try_cannot_cure_is_said_at_once(site: Site, status: int) -> None:
    site.faults = [Fault("status", status)]
    with pytest.raises(UsageError, match=rf"a\.jsonl: HTTP status {status}"):
        resolve(source(site.url + "/a.jsonl?signature=secret"))
    with pytest.raises(UsageError, match="no known format"):
        resolve(source(site.url + "/a.csv"))
    with pytest.raises(UsageError, match="is not an http or https URL"):
        resolve(source("ftp://somewhere/a.jsonl"))


def test_patience_ends_with_a_sentence_that_names_the_url_and_the_last_error(site: Site) -> None:
    chosen, notices = source(site.url + "/a.jsonl"), Notices()
    revision = resolve(chosen)
    site.faults = [Fault("stall", after=400_000), Fault("status", 500, count=10_000)]
    began = time.monotonic()
    with pytest.raises(AutogError, match=r"a\.jsonl could not be read .*HTTP status 500") as raised:
        read(chosen, revision, notices, patience=1.5)
    assert not isinstance(raised.value, UsageError)
    assert 1.5 <= time.monotonic() - began < 6
    assert notices.retries[0]["error"] == "nothing came for 0.4 s"


def test_retry_after_is_obeyed_and_waiting_is_alive(site: Site) -> None:
    chosen, notices = source(site.url + "/a.jsonl"), Notices()
    revision = resolve(chosen)
    site.faults = [Fault("status", 429, headers={"Retry-After": "3"})]
    began = time.monotonic()
    assert read(chosen, revision, notices) == TEXTS
    assert time.monotonic() - began >= 3
    assert notices.retries[0]["wait_seconds"] == 3
    assert ("alive", {}) in notices


def test_a_server_that_is_away_comes_back(site: Site) -> None:
    chosen = source("http://127.0.0.1:1/a.jsonl")
    notices = Notices()
    with pytest.raises(AutogError, match="Connection refused"):
        resolve(chosen, notices, 0.5)
    assert notices.retries


CHILD = """
import json, sys
from autog.data.sources import open_source, resolve
from autog.errors import AutogError
from autog.recipe import Source

def say(kind, facts):
    print(json.dumps([kind, facts]))

for line in sys.stdin:
    task = json.loads(line)
    try:
        chosen = Source(name="hub", weight=1, **task["source"])
        revision = resolve(chosen, say, task.get("patience", 60))
        reader = open_source(chosen, revision, task.get("position"), say, task.get("patience", 60))
        rows, places = [], {}
        for item in reader:
            rows.append(item.text)
            if len(rows) in task.get("remember", []):
                places[len(rows)] = reader.position()
        reader.close()
        print(json.dumps(["result", {"rows": rows, "places": places}]), flush=True)
    except AutogError as error:
        print(json.dumps(["error", {"kind": type(error).__name__, "message": str(error)}]), flush=True)
"""


class Child:
    """A process that reads from the hub: its library reads HF_ENDPOINT once, at import."""

    def __init__(self, hub: Hub, home: Path) -> None:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            environment.pop(name, None)
        command = [sys.executable, "-c", CHILD]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        self.notices = Notices()

    def ask(self, **task: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            kind, facts = json.loads(line)
            if kind in ("result", "error"):
                return facts
            self.notices(kind, facts)
        raise AssertionError(self.process.stderr.read() if self.process.stderr else "")

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def hub() -> Iterator[Hub]:
    rows = ROWS[:1_500]
    halves = {"data/train-0.parquet": as_parquet(rows[:700]), "data/train-1.parquet": as_parquet(rows[700:])}
    lines = {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(), "italian/a.jsonl": JSONL}
    repositories = {
        "me/columns": Repository(halves),
        "me/lines": Repository(lines),
        "me/gated": Repository(halves, gated=True),
    }
    with running(Hub(repositories=repositories)) as served:
        yield served


@pytest.mark.slow
def test_the_hub_is_read_by_the_real_library_through_every_fault(hub: Hub, tmp_path: Path) -> None:
    child = Child(hub, tmp_path)
    hub.faults = [
        Fault("status", 503, path="/api/", count=2), Fault("status", 500, path="parquet"),
        Fault("cut", path="parquet", after=50_000), Fault("stall", path="parquet", after=7_000),
        Fault("reset", path="parquet", after=1_000), Fault("ignore range", path="train-1.parquet"),
        Fault("status", 429, path="train-1.parquet", headers={"Retry-After": "1"}),
    ]  # fmt: skip
    remember = [1, 499, 500, 501, 700, 1_111, 1_500]
    found = child.ask(source={"hub": "me/columns"}, remember=remember)
    assert found.get("rows") == TEXTS[:1_500], found
    assert sum(fault.count for fault in hub.faults) == 0
    assert {"HTTP status 503", "HTTP status 500", "nothing came for 0.4 s", "Connection reset by peer"} <= {
        facts["error"] for facts in child.notices.retries
    }
    for stop, place in found["places"].items():
        again = child.ask(source={"hub": "me/columns"}, position=place)
        assert again["rows"] == TEXTS[int(stop) : 1_500]
    code, errors = child.end()
    assert code == 0 and "Traceback" not in errors and "terminate" not in errors


@pytest.mark.slow
def test_hub_mistakes_are_said_in_a_sentence_with_the_remedy(hub: Hub, tmp_path: Path) -> None:
    child = Child(hub, tmp_path)
    lines = {"hub": "me/lines"}
    assert child.ask(source={**lines, "data_dir": "italian"})["rows"] == TEXTS
    assert child.ask(source={**lines, "data_files": "italian/*.jsonl"})["rows"] == TEXTS
    for fields, said in (
        ({"hub": "me/gated"}, f"visit {hub.url}/datasets/me/gated, accept its conditions, and put a token"),
        ({"hub": "me/nothing"}, "there is no dataset 'me/nothing'"),
        ({**lines, "revision": "v9"}, "has no revision 'v9'"),
        ({**lines, "config": "small"}, "Available: ['default']"),
        ({**lines, "split": "test"}, "Available splits: ['train']"),
        ({**lines, "column": "content"}, "has no column 'content'; it has text, score, other"),
        ({**lines, "data_dir": "french"}, "has no data files for data_dir 'french'"),
    ):
        answer = child.ask(source=fields)
        assert answer.get("kind") == "UsageError" and said in answer["message"], answer
    hub.faults = [Fault("status", 502, count=10_000)]
    answer = child.ask(source={"hub": "me/columns"}, patience=1.5)
    assert answer["kind"] == "AutogError" and "HTTP status 502" in answer["message"]
    assert child.end()[0] == 0
