"""One recipe, three ways to its data: files, HTTP and the hub, with everything going wrong on the way."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import tiny
from pyarrow import parquet
from servers import Fault, Hub, Repository, Site, running
from training import Lines, rows, start, weights

from autog.tokens import Tokenizer

WEIGHTS = {"english": 0.40, "italian": 0.35, "wiki": 0.15, "web": 0.10}
STEPS = 125  # of 8 rows: exactly one cycle of 1,000
TOKEN_FILES = ("train.bin", "train.idx", "val.bin", "val.idx")
NOISE = ("Traceback", "Exception ignored", "terminate called", "Fatal", "core dumped")


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def as_parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), buffer, row_group_size=60)
    return buffer.getvalue()


def made_files() -> dict[str, bytes]:
    """Four corpora in four formats, by path; text files hold one line each, which `datasets` takes for a document."""
    files = {
        "english.jsonl": jsonl(tiny.texts(1, 700)),
        "italian.jsonl.gz": gzip.compress(jsonl(tiny.texts(2, 600)), mtime=0),
        "wiki.parquet": as_parquet(tiny.texts(3, 300)),
    }
    return files | {f"web/{n:02}.txt": f"{text}\n".encode() for n, text in enumerate(tiny.texts(4, 40, longest=400))}


FILES = made_files()
WEB = [name for name in sorted(FILES) if name.startswith("web/")]


def four(places: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The recipe over four sources, wherever they are."""
    sources = [{"name": name, "weight": weight, **places[name]} for name, weight in WEIGHTS.items()]
    every = {"train": {"steps": STEPS}, "evaluate": {"every": 50}, "checkpoint": {"every": 50}}
    return tiny.merged(tiny.recipe_dict(data={"sources": sources}, **every), changes)


def by_url(site: Site) -> dict[str, dict[str, Any]]:
    places: dict[str, dict[str, Any]] = {
        name: {"url": f"{site.url}/{file}"} for file in FILES if (name := file.partition(".")[0]) in WEIGHTS
    }
    return {**places, "web": {"url": [f"{site.url}/{name}" for name in WEB]}}


@dataclass
class Ended:
    """A run of the real command, and what it left."""

    folder: Path
    code: int
    output: str
    errors: str

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def store(self, name: str) -> Path:
        key = json.loads((self.run / "sources.json").read_text())["sources"][name]["key"]
        return self.folder / "home" / "tokens" / key

    def tokens(self) -> dict[str, bytes]:
        """Every byte of every token store."""
        return {f"{name}/{file}": (self.store(name) / file).read_bytes() for name in WEIGHTS for file in TOKEN_FILES}

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in rows(self.run, "events") if row["event"] == kind]

    def clean(self) -> Ended:
        assert self.code == 0, self.output + self.errors
        assert not any(word in self.errors for word in NOISE), self.errors
        return self


def settings(folder: Path, **more: str | None) -> dict[str, str | None]:
    """A home of the run's own, and little patience with each try."""
    short = {"AUTOG_READ_TIMEOUT_SECONDS": "0.5", "AUTOG_RETRY_SECONDS": "0.05", "AUTOG_STALL_SECONDS": "2"}
    return {"AUTOG_HOME": str(folder / "home"), **short, **more}


def hub_settings(folder: Path, hub: Hub) -> dict[str, str | None]:
    return settings(folder, HF_ENDPOINT=hub.url, HF_HOME=str(folder / "hf"), HF_HUB_OFFLINE=None)


def pretrain(folder: Path, recipe: dict[str, Any], *arguments: str, **env: str | None) -> Ended:
    """`autog pretrain` in a folder, to its end."""
    folder.mkdir(exist_ok=True)
    path = tiny.write_recipe(folder / "four.yaml", recipe)
    command = ("pretrain", path, "--run", folder / "run", "--cpu", *arguments)
    return Ended(folder, *tiny.autog(*command, env={**settings(folder), **env}, cwd=folder))


def when_begun(folder: Path, site: Site, faults: list[Fault]) -> None:
    """Puts faults in the fillers' way: those there from the start are spent before the first filler begins."""

    def place() -> None:
        while not (folder / "run" / "recipe.yaml").exists():
            time.sleep(0.01)
        site.faults += faults

    threading.Thread(target=place, daemon=True).start()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The undisturbed run over local files, against which the others are held."""
    folder = tmp_path_factory.mktemp("local")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    places = {name.partition(".")[0]: {"path": str(folder / name)} for name in FILES}
    return pretrain(folder, four({**places, "web": {"path": str(folder / "web")}})).clean()


@pytest.fixture
def site() -> Iterator[Site]:
    with running(Site(files={f"/{name}": content for name, content in FILES.items()})) as served:
        yield served


@pytest.fixture
def hub() -> Iterator[Hub]:
    def repository(*names: str) -> Repository:
        return Repository({name: FILES[name] for name in names})

    repositories = {
        "me/english": repository("english.jsonl"),
        "me/italian": repository("italian.jsonl.gz"),
        "me/wiki": repository("wiki.parquet"),
        "me/web": repository(*WEB),
        "me/gated": Repository({"english.jsonl": FILES["english.jsonl"]}, gated=True),
    }
    with running(Hub(repositories=repositories)) as served:
        yield served


def equals(one: Ended, other: Ended) -> None:
    """The same tokens, and every record and weight that follows from them."""
    assert one.tokens() == other.tokens()
    for name in ("metrics", "eval", "samples"):
        assert rows(one.run, name) == rows(other.run, name)
    assert weights(one.run, STEPS) == weights(other.run, STEPS)


def test_after_a_thousand_rows_the_tokens_of_each_source_are_its_weight_exactly(local: Ended) -> None:
    last = rows(local.run)[-1]
    assert last["tokens"] == 32_000
    assert last["source_tokens"] == {name: round(weight * 32_000) for name, weight in WEIGHTS.items()}


@pytest.mark.slow
def test_files_over_a_bad_connection_train_the_same_model(local: Ended, site: Site, tmp_path: Path) -> None:
    site.faults = [
        Fault("status", 500, path="english"), Fault("stall", path="english"), Fault("status", 503, path="web/07"),
        Fault("cut", path="italian", after=4_000), Fault("reset", path="wiki", after=900),
    ]  # fmt: skip
    later = [
        Fault("status", 500, path="english", count=2), Fault("stall", path="english", after=20_000),
        Fault("cut", path="english", after=9_000), Fault("reset", path="italian", after=5_000),
        Fault("drip", path="italian", after=8_000), Fault("cut", path="wiki", after=3_000),
        Fault("stall", path="wiki", after=2_000), Fault("reset", path="web/03"),
        Fault("stall", path="web/11"), Fault("cut", path="web/30", after=100),
        Fault("status", 429, path="web/31", headers={"Retry-After": "1"}), Fault("ignore range", path="english"),
    ]  # fmt: skip
    when_begun(tmp_path, site, later)
    ended = pretrain(tmp_path, four(by_url(site))).clean()
    equals(ended, local)
    assert [fault for fault in site.faults if fault.count] == []
    assert {event["source"] for event in ended.events("retry")} == set(WEIGHTS)
    assert "source english: HTTP status 500; reading again" in ended.output


@pytest.mark.slow
def test_a_hub_with_faults_trains_the_same_model_through_datasets(local: Ended, hub: Hub, tmp_path: Path) -> None:
    hub.faults = [
        Fault("status", 503, path="/api/datasets/me/english"), Fault("status", 500, path="wiki.parquet"),
        Fault("cut", path="english.jsonl", after=7_000), Fault("stall", path="italian", after=3_000),
    ]  # fmt: skip
    later = [
        Fault("status", 500, path="/api/datasets/me/wiki"), Fault("stall", path="english.jsonl", after=11_000),
        Fault("cut", path="italian", after=5_000), Fault("reset", path="wiki.parquet", after=2_500),
        Fault("status", 504, path="wiki.parquet"), Fault("stall", path="web/05"), Fault("reset", path="web/20"),
    ]  # fmt: skip
    when_begun(tmp_path, hub, later)
    places = {name: {"hub": f"me/{name}"} for name in WEIGHTS}
    ended = pretrain(tmp_path, four(places), **hub_settings(tmp_path, hub)).clean()
    equals(ended, local)
    assert [fault for fault in hub.faults if fault.count] == []
    assert {event["source"] for event in ended.events("retry")} == set(WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["url", "hub"])
def test_what_is_filled_needs_no_network_any_more(kind: str, local: Ended, tmp_path: Path) -> None:
    files = {f"/{name}": content for name, content in FILES.items()}
    repositories = {
        f"me/{name}": Repository({file: content for file, content in FILES.items() if file.startswith(name)})
        for name in WEIGHTS
    }
    with running(Hub(repositories=repositories) if kind == "hub" else Site(files=files)) as served:
        places = {name: {"hub": f"me/{name}"} for name in WEIGHTS} if kind == "hub" else by_url(served)
        env = hub_settings(tmp_path, served) if isinstance(served, Hub) else {}
        first = pretrain(tmp_path, four(places), "--stop-after", "60", **env).clean()
        assert all(json.loads((first.store(name) / "manifest.json").read_text())["done"] for name in WEIGHTS)
        asked = len(served.requests)
    last = pretrain(tmp_path, four(places), **env).clean()
    assert len(served.requests) == asked and not last.events("retry")
    equals(last, local)


# -- a source that falls silent ---------------------------------------------------------------------------------------

LENGTH = 16
FIRST_WINDOW = 4096 * LENGTH  # tokens of a source, and one more, before its first row is given out
LONG_STEPS = 170  # of 32 rows, nine in ten from the web: its second window is needed from step 142 on


def long_texts() -> list[str]:
    return tiny.texts(5, 1_500, longest=90)


def long_recipe(tmp_path: Path, url: str, **data: Any) -> dict[str, Any]:
    """A recipe that needs more of one URL than its first window."""
    near = tmp_path / "near.jsonl"
    if not near.exists():
        tiny.corpus(near, 6)
    sources = [{"name": "far", "weight": 0.9, "url": url}, {"name": "near", "weight": 0.1, "path": str(near)}]
    train = {"steps": LONG_STEPS, "batch_tokens": 32 * LENGTH, "micro_batch": 32, "log_every": 10}
    every = {"train": train, "evaluate": {"every": 100}, "checkpoint": {"every": 100}}
    return tiny.recipe_dict(data={"sequence_length": LENGTH, "sources": sources, **data}, **every)


def silent_from(site: Site, body: bytes) -> int:
    """The byte of the long file from which on the site says nothing any more, well past the first window."""
    place = len(body) * 8 // 10
    site.faults = [Fault("stall", path="long", after=place, count=1), Fault("status", 503, path="long", count=100_000)]
    return place


@pytest.fixture
def long_site() -> Iterator[Site]:
    with running(Site(files={"/long.jsonl": jsonl(long_texts())})) as served:
        yield served


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("undisturbed")
    with running(Site(files={"/long.jsonl": jsonl(long_texts())})) as served:
        return pretrain(folder, long_recipe(folder, f"{served.url}/long.jsonl")).clean()


def falls_silent(folder: Path, site: Site) -> None:
    """Arranges that the fillers, not the beginning of the run, meet the silence."""

    def place() -> None:
        while not (folder / "run" / "recipe.yaml").exists():
            time.sleep(0.01)
        silent_from(site, site.files["/long.jsonl"])

    threading.Thread(target=place, daemon=True).start()


@pytest.mark.slow
def test_a_source_that_falls_silent_is_said_then_given_up_with_all_work_saved(
    undisturbed: Ended, long_site: Site, tmp_path: Path
) -> None:
    url = f"{long_site.url}/long.jsonl"
    falls_silent(tmp_path, long_site)
    ended = pretrain(tmp_path, long_recipe(tmp_path, url, patience_minutes=0.15))
    assert ended.code == 1, ended.output + ended.errors
    assert not any(word in ended.errors for word in NOISE), ended.errors
    assert "source 'far'" in ended.errors and ended.errors.count("\n") == 1, ended.errors
    assert "source far: no data for 2 s; still trying" in ended.output
    step = rows(ended.run, "events")[-1]["step"]
    assert 130 < step < LONG_STEPS, "it should train on all that it has, and no further"
    assert (ended.run / f"step-{step:06d}").is_dir()
    long_site.faults = []
    again = pretrain(tmp_path, long_recipe(tmp_path, url, patience_minutes=0.15)).clean()
    assert rows(again.run) == rows(undisturbed.run)
    assert rows(again.run, "eval") == rows(undisturbed.run, "eval")
    assert weights(again.run, LONG_STEPS) == weights(undisturbed.run, LONG_STEPS)


@pytest.mark.slow
def test_ctrl_c_while_a_source_is_silent_saves_and_leaves_within_seconds(long_site: Site, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", long_recipe(tmp_path, f"{long_site.url}/long.jsonl"))
    falls_silent(tmp_path, long_site)
    process = start(recipe, tmp_path / "run", env=settings(tmp_path))
    lines = Lines(process)
    assert lines.wait_for("step    130/"), process.stderr.read()
    assert lines.wait_for("source far: no data for 2 s; still trying"), lines.lines
    time.sleep(1.0)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - began < 8
    assert not any(word in process.stderr.read() for word in NOISE)
    step = rows(tmp_path / "run", "events")[-1]["step"]
    assert step >= 140 and (tmp_path / "run" / f"step-{step:06d}").is_dir()


def test_ctrl_c_while_a_run_that_begins_waits_for_its_source_leaves_no_run(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault("status", 503, count=10_000)]
    recipe = tiny.write_recipe(tmp_path / "r.yaml", four(by_url(site)))
    process = start(recipe, tmp_path / "run", env=settings(tmp_path))
    assert Lines(process).wait_for("HTTP status 503"), process.stderr.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert not any(word in process.stderr.read() for word in NOISE)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.slow
def test_bytes_that_changed_between_two_starts_are_refused_by_name(long_site: Site, tmp_path: Path) -> None:
    url, content = f"{long_site.url}/long.jsonl", long_site.files["/long.jsonl"]
    falls_silent(tmp_path, long_site)
    pretrain(tmp_path, long_recipe(tmp_path, url), "--stop-after", "30").clean()
    long_site.faults = []
    long_site.files["/long.jsonl"] = content[:-3] + b'!"}\n'
    refused = pretrain(tmp_path, long_recipe(tmp_path, url))
    assert refused.code == 2, refused.output + refused.errors
    assert "source 'far'" in refused.errors and "long.jsonl changed since the run began" in refused.errors
    assert refused.errors.count("\n") == 1
    long_site.files["/long.jsonl"] = content
    assert pretrain(tmp_path, long_recipe(tmp_path, url), "--stop-after", "5").code == 0


# -- mistakes ---------------------------------------------------------------------------------------------------------


def mistakes(hub: Hub) -> list[tuple[dict[str, Any], str]]:
    """Fields of a hub source, and what must be said about them."""
    return [
        ({"hub": "me/nothing"}, "there is no dataset 'me/nothing'"),
        ({"hub": "me/gated"}, f"visit {hub.url}/datasets/me/gated, accept its conditions"),
        ({"hub": "me/english", "column": "content"}, "has no column 'content'; it has text"),
        ({"hub": "me/english", "config": "small"}, "Available: ['default']"),
        ({"hub": "me/english", "split": "test"}, "Available splits: ['train']"),
        ({"hub": "me/english", "revision": "v9"}, "has no revision 'v9'"),
    ]


@pytest.mark.slow
def test_mistakes_about_hub_sources_are_one_sentence_and_begin_no_run(
    hub: Hub, tmp_path: Path, tokenizer_folder: Path
) -> None:
    # A tokenizer that is there already: nothing but the sources themselves can show the mistake.
    for number, (fields, said) in enumerate(mistakes(hub)):
        changes = {"data": {"sources": [{"name": "web", "weight": 1, **fields}]}}
        recipe = tiny.merged(tiny.recipe_dict(tokenizer={"hf": str(tokenizer_folder)}), changes)
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = pretrain(folder, recipe, **hub_settings(folder, hub))
        refused_without_a_trace(ended, said)
    recipe["data"]["sources"] = [{"name": "web", "weight": 1, "hub": "me/english"}]
    assert pretrain(folder, recipe, **hub_settings(folder, hub)).clean()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": "{here}/near.jsonl", "column": "content"}, "has no column 'content'; it has text"),
        ({"path": "{here}/nothing.jsonl"}, "no files at"),
        ({"path": "{here}/latin.txt"}, "set `encoding: cp1252`"),
        ({"path": "{here}/fake.parquet"}, "is not a readable parquet file"),
    ],
)
def test_mistakes_about_files_are_one_sentence_and_begin_no_run(
    fields: dict[str, str], said: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    tiny.corpus(tmp_path / "near.jsonl")
    (tmp_path / "latin.txt").write_bytes("caffè è perché\n".encode("cp1252") * 200)
    (tmp_path / "fake.parquet").write_bytes(b"PAR1 not really")
    place = {key: value.format(here=tmp_path) for key, value in fields.items()}
    recipe = tiny.recipe_dict(
        tokenizer={"hf": str(tokenizer_folder)}, data={"sources": [{"name": "web", "weight": 1, **place}]}
    )
    refused_without_a_trace(pretrain(tmp_path, recipe), said)


def test_a_mistake_about_a_source_that_is_needed_late_is_said_at_once(tmp_path: Path) -> None:
    near = tiny.corpus(tmp_path / "near.jsonl")
    sources = [
        {"name": "near", "weight": 1, "path": str(near)},
        {"name": "web", "weight": 0, "path": str(near), "column": "content"},
    ]
    refused_without_a_trace(pretrain(tmp_path, tiny.recipe_dict(data={"sources": sources})), "no column 'content'")


BEGIN = """
import sys
from autog.data.pin import choose_tokenizer, resolve_all
from autog.recipe import Recipe

recipe = Recipe.load(sys.argv[1])
said = []
tell = lambda kind, facts: said.append(kind)
print(choose_tokenizer(recipe, resolve_all(recipe, tell), tell).sha256, "retry" in said)
loaded = {"datasets", "pyarrow", "pandas"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.mark.slow
def test_the_trainer_begins_a_hub_run_without_loading_datasets(hub: Hub, local: Ended, tmp_path: Path) -> None:
    hub.faults = [Fault("cut", path="english.jsonl", after=7_000)]
    path = tiny.write_recipe(tmp_path / "r.yaml", four({name: {"hub": f"me/{name}"} for name in WEIGHTS}))
    env = tiny.environment(hub_settings(tmp_path, hub))
    command = [sys.executable, "-c", BEGIN, str(path)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    assert ended.stdout.split() == [Tokenizer.load(local.run / "tokenizer").sha256, "True"]


def refused_without_a_trace(ended: Ended, said: str) -> None:
    """Exit code 2, one sentence that names the source, and a folder in which the mended recipe can begin."""
    assert ended.code == 2, ended.output + ended.errors
    assert said in ended.errors and "source 'web'" in ended.errors, ended.errors
    assert ended.errors.count("\n") == 1, ended.errors
    assert not (ended.run / "recipe.yaml").exists()
    assert not list((ended.folder / "home").glob("tokens/*/manifest.json"))
