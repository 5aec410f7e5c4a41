"""Kills, signals, full disks, locks: real processes, and nothing lost."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny
from training import Lines, rows, start, train, weights


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return [tiny.corpus(folder / f"{name}.jsonl", seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture
def recipe(tmp_path: Path, corpora: list[Path]) -> Path:
    content = tiny.recipe_dict(*corpora, train={"steps": 40}, checkpoint={"every": 5}, evaluate={"every": 10})
    return tiny.write_recipe(tmp_path / "tiny.yaml", content)


def finish(recipe: Path, run: Path) -> None:
    """Repeats the command until the run is done."""
    process = start(recipe, run)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors


def same_records(run: Path, whole: Path, last: int) -> None:
    """Every record but the times, and the last weights, equal those of the uninterrupted run."""
    for name in ("metrics", "eval", "samples"):
        assert rows(run, name) == rows(whole, name)
    assert weights(run, last) == weights(whole, last)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    run, whole, pick = tmp_path / "run", tmp_path / "whole", random.Random(7)
    finish(recipe, whole)
    pauses = {"AUTOG_PAUSE": "step:0.02,save:0.05"}
    for kill in range(10):
        process = start(recipe, run, env=pauses)
        # Kills closer together than start-up and one save would make no progress: draw them after the first line.
        assert Lines(process).wait_for("step "), process.stderr.read()
        time.sleep(pick.uniform(0, 0.8) if kill % 3 else pick.uniform(0, 0.1))
        process.kill()
        process.wait()
    finish(recipe, run)
    same_records(run, whole, 40)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.06, 0.12, 0.18, 0.24, 0.3])
def test_a_kill_inside_a_save_leaves_the_checkpoint_before(recipe: Path, tmp_path: Path, delay: float) -> None:
    run = tmp_path / "run"
    train(recipe, run, stop_after=5)
    process = start(recipe, run, env={"AUTOG_PAUSE": "save:0.06"})
    lines = Lines(process)
    assert lines.wait_for("resuming at step 5")
    deadline = time.monotonic() + 60
    while not list(run.glob(".partial-*")) and not (run / "step-000010").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()
    train(recipe, run)
    train(recipe, tmp_path / "whole")
    same_records(run, tmp_path / "whole", 40)
    assert not list(run.glob(".partial-*")) and not list(run.glob(".trash-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_after_the_step_in_hand(recipe: Path, tmp_path: Path, number: int) -> None:
    process = start(recipe, tmp_path / "run", env={"AUTOG_PAUSE": "step:0.1"})
    assert Lines(process).wait_for("step      3/")
    process.send_signal(number)
    process.wait(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in process.stderr.read()
    assert rows(tmp_path / "run", "events")[-1] == {
        "step": (step := rows(tmp_path / "run", "events")[-1]["step"]),
        "event": "stop",
        "why": "signal",
    }
    assert (tmp_path / "run" / f"step-{step:06d}").is_dir()
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, step + 1))


def test_a_second_ctrl_c_leaves_at_once(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path / "run", env={"AUTOG_PAUSE": "step:5"})
    assert Lines(process).wait_for("micro-batch")
    time.sleep(1.0)  # into the first step, which pauses
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=3) == 130


def test_two_runs_of_one_name_at_once_are_refused(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path / "run", env={"AUTOG_PAUSE": "step:0.3"})
    assert Lines(process).wait_for("step ")
    code, _, errors = tiny.autog("pretrain", recipe, "--run", tmp_path / "run", "--cpu")
    process.kill()
    process.wait()
    assert code == 2 and f"in use by process {process.pid}" in errors and "Traceback" not in errors


def test_fillers_die_with_a_killed_trainer(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path / "run", env={"AUTOG_PAUSE": "step:0.3,fill:0.2"})
    assert Lines(process).wait_for("micro-batch")
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("autog.data.fill" in " ".join(child.cmdline()) for child in children)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def limited(arguments: list[str], file_bytes: int) -> subprocess.CompletedProcess[str]:
    """`autog` where no file may grow beyond a size: how a full disk looks to a program."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    command = [sys.executable, "-m", "autog", *arguments]
    return subprocess.run(
        command, env=tiny.environment(), capture_output=True, text=True, preexec_fn=limit, timeout=120, check=False
    )


def test_a_disk_full_while_saving_keeps_the_last_whole_checkpoint(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, run, stop_after=5)
    small = (run / "step-000005" / "model.safetensors").stat().st_size - 1000
    ended = limited(["pretrain", str(recipe), "--run", str(run), "--cpu"], small)
    assert ended.returncode == 1
    assert "could not be written" in ended.stderr and "Traceback" not in ended.stderr
    assert sorted(path.name for path in run.glob("step-*")) == ["step-000005"]
    train(recipe, run)
    train(recipe, tmp_path / "whole")
    same_records(run, tmp_path / "whole", 40)


def test_a_disk_full_while_filling_says_so_and_names_the_source(tmp_path: Path) -> None:
    big = tiny.corpus(tmp_path / "big.jsonl", 1, documents=3000)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_dict(big))
    ended = limited(["pretrain", str(recipe), "--run", str(tmp_path / "run"), "--cpu"], 60_000)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "source 'big'" in ended.stderr and "Traceback" not in ended.stderr
    assert train(recipe, tmp_path / "run") == 0


def test_a_filler_killed_while_training_is_started_again_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tiny.corpus(tmp_path / "text.jsonl", 1, documents=4000)
    content = tiny.recipe_dict(texts, train={"steps": 400, "log_every": 50}, checkpoint={"every": 1000})
    recipe = tiny.write_recipe(tmp_path / "r.yaml", content)
    process = start(recipe, tmp_path / "run", env={"AUTOG_PAUSE": "fill:0.0005"})
    lines = Lines(process)
    assert lines.wait_for("micro-batch")
    for child in psutil.Process(process.pid).children(recursive=True):
        if "autog.data.fill" in " ".join(child.cmdline()):
            child.kill()
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert any(row["event"] == "restart" for row in rows(tmp_path / "run", "events"))
    monkeypatch.setenv("AUTOG_HOME", str(tmp_path / "other home"))
    train(recipe, tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_crash_leaves_every_line_up_to_its_checkpoint_on_disk(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path / "run", env={"AUTOG_PAUSE": "step:0.05"})
    assert Lines(process).wait_for("step     12/")
    process.kill()
    process.wait()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()]
    newest = max(int(path.name[5:]) for path in (tmp_path / "run").glob("step-*"))
    assert steps[:newest] == list(range(1, newest + 1))
