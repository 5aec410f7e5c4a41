"""What filling promises: whatever happens to the process, the store ends byte for byte as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_tokens import train_another
from tiny import autog, corpus, environment, recipe_dict, texts, write_jsonl, write_recipe

from autog.data.fill import Job, as_message
from autog.data.fillers import Fillers
from autog.data.pin import fill_jobs, open_mixture, open_stores, pin_sources, resolve_all
from autog.data.store import StoreWriter
from autog.recipe import Recipe
from autog.tokens import Tokenizer

FILES = ["train.bin", "train.idx", "val.bin", "val.idx", "hashes.bin", "manifest.json"]


def quiet(kind: str, facts: dict[str, Any]) -> None:
    """Hears nothing."""


def jobs(recipe: dict[str, Any], tokenizer_folder: Path) -> list[Job]:
    """The fillers' jobs of a recipe, each the whole of its source."""
    made = Recipe.from_dict(recipe, "here")
    pinned = pin_sources(made, resolve_all(made, quiet), Tokenizer.load(tokenizer_folder))
    return fill_jobs(made, pinned, tokenizer_folder, None)


def job_for(path: Path, store: Path, tokenizer_folder: Path, **changes: Any) -> Job:
    """The job of filling one store from one file."""
    source = changes.pop("source", {})
    recipe = recipe_dict(path)
    recipe["data"]["sources"][0] |= source
    return replace(jobs(recipe, tokenizer_folder)[0], directory=str(store), **changes)


def start(job: Job, env: dict[str, str | None] | None = None, **options: Any) -> subprocess.Popen[str]:
    """A filler as a run starts it."""
    command = [sys.executable, "-m", "autog.data.fill"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(env), **options
    )
    assert process.stdin is not None
    process.stdin.write(as_message(job))
    process.stdin.flush()
    return process


def events(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """All that a filler says until it ends."""
    assert process.stdout is not None and process.stdin is not None
    heard = [json.loads(line) for line in process.stdout]
    process.stdin.close()
    assert process.wait(30) == 0
    return heard


def fill(job: Job, env: dict[str, str | None] | None = None, **options: Any) -> list[dict[str, Any]]:
    return events(start(job, env, **options))


def hear(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """The next event of a kind."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == kind:
            return event
    raise AssertionError(f"it ended without saying {kind}")


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES}


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())


def documents(directory: Path, split: str, tokenizer: Tokenizer) -> list[str]:
    """The texts of a store."""
    ends = np.fromfile(directory / f"{split}.idx", dtype="<u8").tolist()
    ids = np.fromfile(directory / f"{split}.bin", dtype=manifest(directory)["dtype"])
    return [tokenizer.decode(ids[begin : end - 1]) for begin, end in zip([0, *ends], ends)]


def test_a_fill_holds_every_document_once_in_order_and_on_one_side(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = texts(1, 400)
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, *rows[:25]])
    heard = fill(job_for(path, tmp_path / "store", tokenizer_folder))
    tokenizer = Tokenizer.load(tokenizer_folder)
    train, val = (documents(tmp_path / "store", split, tokenizer) for split in ("train", "val"))
    assert not set(train) & set(val) and len(val) > 10
    order = [text for text in [*rows, *rows[:25]] if text not in set(val)]
    assert train == order and sorted([*train, *val]) == sorted([*rows, *rows[:25]])
    facts = manifest(tmp_path / "store")
    assert facts["duplicates"] == 25 and facts["done"] and facts["skipped"] == {}
    assert facts["train"]["documents"] == len(train) and heard[-1] == {"event": "finished"}
    ids = np.fromfile(tmp_path / "store" / "train.bin", dtype="<u2")
    assert (ids == tokenizer.end_id).sum() == len(train)


def test_no_document_changes_sides_whatever_the_order_or_share(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = texts(1, 500)
    forwards = write_jsonl(tmp_path / "a.jsonl", rows)
    backwards = write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    tokenizer = Tokenizer.load(tokenizer_folder)
    held_out = {}
    for name, path, share in (("small", forwards, 0.1), ("other", backwards, 0.1), ("large", backwards, 0.4)):
        store = tmp_path / name
        fill(job_for(path, store, tokenizer_folder, source={"validation": share}))
        held_out[name] = set(documents(store, "val", tokenizer))
        assert held_out[name] | set(documents(store, "train", tokenizer)) == set(rows)
    assert held_out["small"] == held_out["other"] < held_out["large"]


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_filler_killed_at_random_moments_leaves_the_store_of_an_undisturbed_one(
    seed: int, tmp_path: Path, tokenizer_folder: Path
) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=3000)
    with path.open("a") as file:
        file.write("no json\n" * 3)
    whole = job_for(path, tmp_path / "whole", tokenizer_folder)
    fill(whole)
    cut = replace(whole, directory=str(tmp_path / "cut"))
    pick = random.Random(seed)
    for kill in range(10):
        process = start(cut, {"AUTOG_PAUSE": "fill:0.01,commit:0.15"})
        if kill % 2:
            hear(process, "progress")  # a commit was made: from now on the next one may be hit
        time.sleep(pick.uniform(0.0, 1.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < manifest(tmp_path / "cut")["train"]["tokens"] < manifest(tmp_path / "whole")["train"]["tokens"]
    fill(cut)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_filler_killed_after_a_commit_goes_on_from_it(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=600)
    whole = job_for(path, tmp_path / "whole", tokenizer_folder)
    fill(whole)
    cut = replace(whole, directory=str(tmp_path / "cut"))
    process = start(cut, {"AUTOG_PAUSE": "fill:0.003"})
    committed = hear(process, "progress")["train_tokens"]
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert 0 < committed == manifest(tmp_path / "cut")["train"]["tokens"]
    fill(cut)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_second_filler_waits_and_takes_over_when_the_first_one_dies(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=600)
    job = job_for(path, tmp_path / "store", tokenizer_folder)
    first = start(job, {"AUTOG_PAUSE": "fill:0.01"})
    hear(first, "progress")
    second = start(job)
    hear(second, "waiting")
    first.kill()
    first.wait()
    assert events(second)[-1] == {"event": "finished"}
    fill(replace(job, directory=str(tmp_path / "whole")))
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_waiting_filler_ends_when_it_is_told_to(tmp_path: Path, tokenizer_folder: Path) -> None:
    job = job_for(corpus(tmp_path / "a.jsonl"), tmp_path / "store", tokenizer_folder)
    holder = StoreWriter(tmp_path / "store", job.facts, 1000)
    assert holder.acquire()
    process = start(job)
    hear(process, "waiting")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    holder.release()


def test_a_filler_told_to_stop_commits_first(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=600)
    job = job_for(path, tmp_path / "store", tokenizer_folder)
    process = start(job, {"AUTOG_PAUSE": "fill:0.01"})
    hear(process, "progress")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    facts = manifest(tmp_path / "store")
    assert not facts["done"]
    assert (tmp_path / "store" / "train.bin").stat().st_size == facts["train"]["tokens"] * 2
    fill(job)
    fill(replace(job, directory=str(tmp_path / "whole")))
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_filler_ignores_ctrl_c_and_sigterm(tmp_path: Path, tokenizer_folder: Path) -> None:
    job = job_for(corpus(tmp_path / "a.jsonl", documents=300), tmp_path / "store", tokenizer_folder)
    process = start(job, {"AUTOG_PAUSE": "fill:0.006"})
    hear(process, "progress")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.05)
    assert process.poll() is None
    assert events(process)[-1] == {"event": "finished"}
    assert manifest(tmp_path / "store")["done"]


PARENT = """
import sys, time
from autog.data.fill import Job
from autog.data.fillers import Fillers
import json
fillers = Fillers([Job(**json.loads(sys.argv[1]))], lambda kind, facts: None)
fillers.start()
print(fillers.fillers[0].process.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return true()


def test_a_filler_dies_with_its_parent(tmp_path: Path, tokenizer_folder: Path) -> None:
    job = job_for(corpus(tmp_path / "a.jsonl"), tmp_path / "store", tokenizer_folder)
    message = json.dumps(json.loads(as_message(job))["job"])
    env = environment({"AUTOG_PAUSE": "fill:0.1"})
    parent = subprocess.Popen([sys.executable, "-c", PARENT, message], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    filler = int(parent.stdout.readline())
    assert within(20, (tmp_path / "store" / "train.bin").exists) and not gone(filler)
    parent.kill()
    parent.communicate()
    assert within(5, lambda: gone(filler))


# -- how much ---------------------------------------------------------------------------------------------------------


def test_a_filler_stops_at_its_need_whatever_its_pace(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=800)
    job = job_for(path, tmp_path / "fast", tokenizer_folder, train_tokens=9000, val_tokens=500)
    fill(job)
    fill(replace(job, directory=str(tmp_path / "slow")), {"AUTOG_PAUSE": "fill:0.004"})
    facts = manifest(tmp_path / "fast")
    assert not facts["done"] and facts["position"] is not None
    assert 9000 <= facts["train"]["tokens"] < 9600 and facts["val"]["tokens"] >= 500
    assert contents(tmp_path / "fast") == contents(tmp_path / "slow")
    before = (tmp_path / "fast" / "manifest.json").stat().st_mtime_ns
    fill(job)  # there is nothing left to do
    assert (tmp_path / "fast" / "manifest.json").stat().st_mtime_ns == before


def test_a_store_extended_for_a_longer_run_equals_one_filled_at_once(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=800)
    job = job_for(path, tmp_path / "once", tokenizer_folder, train_tokens=9000, val_tokens=500)
    fill(job)
    for need in (1, 2500, 9000):
        fill(replace(job, directory=str(tmp_path / "grown"), train_tokens=need, val_tokens=min(need, 500)))
    assert contents(tmp_path / "grown") == contents(tmp_path / "once")
    for store in ("once", "grown"):
        fill(replace(job, directory=str(tmp_path / store), train_tokens=None, val_tokens=None))
        assert manifest(tmp_path / store)["done"]
    assert contents(tmp_path / "grown") == contents(tmp_path / "once")


def test_a_source_of_weight_zero_stores_only_its_validation_documents(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=300)
    recipe = recipe_dict(path, path.with_name("a.jsonl"))
    recipe["data"]["sources"][1] |= {"name": "watched", "weight": 0}
    trained, watched = (replace(job, directory=str(tmp_path / job.name)) for job in jobs(recipe, tokenizer_folder))
    assert trained.facts != watched.facts
    fill(trained)
    fill(watched)
    assert manifest(tmp_path / "watched")["train"] == {"tokens": 0, "documents": 0}
    assert (tmp_path / "watched" / "val.bin").read_bytes() == (tmp_path / "a" / "val.bin").read_bytes()


def test_the_need_of_a_run_is_whole_windows_of_its_plan_and_its_validation_rows(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    path, other = corpus(tmp_path / "a.jsonl"), corpus(tmp_path / "b.jsonl", 1)
    recipe = Recipe.from_dict(recipe_dict(path, other, train={"steps": 2000}), "here")
    pinned = pin_sources(recipe, resolve_all(recipe, quiet), Tokenizer.load(tokenizer_folder))
    mixture = open_mixture(recipe, pinned, open_stores(recipe, pinned))
    assert mixture.rows_used(recipe.rows) == {"a": 8000, "b": 8000}
    for job in fill_jobs(recipe, pinned, tokenizer_folder, mixture):
        assert job.train_tokens == 2 * 4096 * 32 + 1
        assert job.val_tokens == 16 * 32 + 1  # evaluate.tokens: 512


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_the_store_goes_on_afterwards(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=900)
    job = job_for(path, tmp_path / "store", tokenizer_folder)
    limit = 20_000  # bytes in any one file
    full = fill(job, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert full[-1]["event"] == "error" and not full[-1]["usage"]
    said = full[-1]["message"]
    assert "File too large" in said and str(tmp_path / "store") in said and "repeat the command" in said
    assert "\n" not in said
    fill(job)
    fill(replace(job, directory=str(tmp_path / "whole")))
    assert manifest(tmp_path / "store")["train"]["tokens"] * 2 > limit
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_malformed_rows_are_counted_and_the_first_ones_shown(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [json.dumps({"text": text}) for text in texts(1, 200)]
    rows[50:50] = ["not json", '{"text": "cut', "[1]", "{}", '{"text": 5}', '{"text": null}', '{"text": ""}', ""]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    heard = fill(job_for(tmp_path / "a.jsonl", tmp_path / "store", tokenizer_folder))
    facts = manifest(tmp_path / "store")
    assert facts["train"]["documents"] + facts["val"]["documents"] == 200
    assert facts["skipped"]["malformed"] == 3 and sum(facts["skipped"].values()) == 7
    shown = [event["where"] for event in heard if event["event"] == "skipped" and event["reason"] == "malformed"]
    assert [Path(where).name for where in shown] == ["a.jsonl:51", "a.jsonl:52", "a.jsonl:53"]


def test_building_shows_what_was_left_out(tmp_path: Path) -> None:
    path = corpus(tmp_path / "a.jsonl", documents=300)
    with path.open("a") as file:
        file.write("not json\n" * 5)
    recipe = write_recipe(tmp_path / "mine.yaml", recipe_dict(path))
    code, output, errors = autog("data", "build", recipe, cwd=tmp_path)
    assert code == 0, errors
    assert "a.jsonl:301" in output and "5 rows left out: malformed" in output
    code, output, errors = autog("data", "build", recipe, "--json", cwd=tmp_path)
    assert code == 0 and json.loads(output)["stores"][0]["skipped"] == {"malformed": 5}, errors


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_filler_needs_less_than_700_mb_for_a_document_of_100_mb(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    sentence = " ".join(texts(1, 40)).replace('"', "")
    with path.open("w", encoding="utf-8") as file:
        file.write('{"text": "')
        for _ in range(100_000_000 // len(sentence.encode()) + 1):
            file.write(sentence)
        file.write('"}\n')
    assert path.stat().st_size > 100_000_000
    process = start(job_for(path, tmp_path / "store", tokenizer_folder))
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        if not status.exists():
            pytest.skip("memory is read from /proc, which this system has not")
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *(int(line.split()[1]) for line in lines)])
        time.sleep(0.01)
    assert manifest(tmp_path / "store")["train"]["documents"] + manifest(tmp_path / "store")["val"]["documents"] == 1
    assert peak < 700_000, f"{peak / 1000:.0f} MB"


@pytest.mark.slow
def test_a_filler_says_that_it_works_while_one_long_document_is_tokenised(tmp_path: Path) -> None:
    folder = train_another(tmp_path / "tokenizer", "normalizer")  # the slower of the two ways to encode
    path = write_jsonl(tmp_path / "a.jsonl", [" ".join(texts(1, 400)) * 500])
    heard = fill(job_for(path, tmp_path / "store", folder))
    assert {"event": "working"} in heard and heard[-1] == {"event": "finished"}


# -- the trainer's side -----------------------------------------------------------------------------------------------


@contextmanager
def filling(job_list: list[Job], told: list[tuple[str, dict[str, Any]]]) -> Iterator[Fillers]:
    fillers = Fillers(job_list, lambda kind, facts: told.append((kind, facts)))
    fillers.start()
    try:
        yield fillers
    finally:
        fillers.stop()


def test_a_filler_that_dies_is_started_again(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOG_PAUSE", "fill:0.005")
    job = job_for(corpus(tmp_path / "a.jsonl", documents=400), tmp_path / "store", tokenizer_folder)
    told: list[tuple[str, dict[str, Any]]] = []
    with filling([job], told) as fillers:
        only = fillers.fillers[0]
        assert only.process is not None and within(20, lambda: bool(only.progress))
        only.process.kill()
        assert within(30, lambda: fillers.finished)
        assert fillers.error([job.name]) is None
    assert [kind for kind, _ in told] == ["restart"] and "code -9" in told[0][1]["why"]
    fill(replace(job, directory=str(tmp_path / "whole")), {"AUTOG_PAUSE": None})
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_file_that_changes_while_it_is_read_is_refused_by_name(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOG_PAUSE", "fill:0.005")
    path = corpus(tmp_path / "a.jsonl", documents=300)
    job = job_for(path, tmp_path / "store", tokenizer_folder)
    with filling([job], []) as fillers:
        assert within(20, lambda: bool(fillers.fillers[0].progress))
        os.utime(path, (1, 1))
        assert within(20, lambda: fillers.error([job.name]) is not None)
        assert fillers.error(["another"]) is None and not fillers.finished
        said = str(fillers.error([job.name]))
    assert "source 'a'" in said and str(path) in said and "changed" in said


def test_stopping_ends_every_filler_and_keeps_what_was_read(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOG_PAUSE", "fill:0.01")
    paths = [corpus(tmp_path / f"{name}.jsonl", seed, documents=900) for seed, name in enumerate("ab")]
    both = [replace(job, directory=str(tmp_path / job.name)) for job in jobs(recipe_dict(*paths), tokenizer_folder)]
    with filling(both, []) as fillers:
        assert within(30, lambda: all(filler.progress for filler in fillers.fillers))
        processes = [filler.process for filler in fillers.fillers]
    assert [process and process.poll() for process in processes] == [0, 0]
    for name in "ab":
        assert manifest(tmp_path / name)["train"]["tokens"] > 0 and not manifest(tmp_path / name)["done"]
