"""Two processes: the same global batches and losses as one, however they are launched, and back to one on resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import tiny
from training import Lines, losses, rows, train


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    corpora = [tiny.corpus(tmp_path / f"{name}.jsonl", seed) for seed, name in enumerate(("one", "two"))]
    return tiny.write_recipe(tmp_path / "tiny.yaml", tiny.recipe_dict(*corpora))


def launch(
    *command: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A launcher with two processes behind it."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=tiny.environment({"OMP_NUM_THREADS": "1", **(env or {})}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=cwd,
    )


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_one_goes_on_where_two_stopped(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "one")
    pair = ("autog", "pretrain", str(recipe), "--accelerate-config", "cpu_pair", "--run")
    ended = launch(*pair, str(tmp_path / "two"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 processes" in ended.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    for ours, theirs in zip(rows(tmp_path / "two", "eval"), rows(tmp_path / "one", "eval"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert launch(*pair, str(tmp_path / "both"), "--stop-after", "6").returncode == 0
    assert train(recipe, tmp_path / "both") == 0
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert [row["processes"] for row in rows(tmp_path / "both", "events") if "processes" in row] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("accelerate.commands.launch", "--config_file", str(tiny.ROOT / "accelerate_configs" / "cpu_pair.yaml"), "-m"),
        ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"),
    ],
    ids=["accelerate", "torchrun"],
)
def test_a_launch_by_hand_does_the_same(recipe: Path, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    train(recipe, tmp_path / "one")
    # torchrun takes `--run` for an ambiguous option of its own; the recipe's name does the same.
    arguments = ("autog", "pretrain", str(recipe), "--set", "name=two")
    ended = launch(*launcher, *arguments, env={"ACCELERATE_USE_CPU": "true"}, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert losses(tmp_path / "runs" / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_a_mistake_is_one_sentence_with_two_processes_too(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", stop_after=4)
    pair = ("autog", "pretrain", str(recipe), "--accelerate-config", "cpu_pair", "--run", str(tmp_path / "run"))
    ended = launch(*pair, "--set", "train.steps=20")
    assert ended.returncode != 0
    assert "different: train.steps" in ended.stderr


@pytest.mark.slow
def test_killing_the_launcher_leaves_nothing_running(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autog", "pretrain", str(recipe), "--accelerate-config", "cpu_pair"]
    process = subprocess.Popen(
        [*command, "--run", str(tmp_path / "run")],
        env=tiny.environment({"AUTOG_PAUSE": "step:0.3"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert Lines(process).wait_for("step ")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive


def test_print_launch_shows_the_command_and_its_environment(recipe: Path) -> None:
    code, output, _ = tiny.autog("pretrain", recipe, "--accelerate-config", "cpu_pair", "--print-launch")
    assert code == 0
    assert "ACCELERATE_USE_CPU=true" in output and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=900" in output
    assert "--num_processes 2" in output and "--module autog pretrain" in output
    assert os.linesep not in output.strip()


@pytest.mark.slow
def test_a_model_sharded_over_two_processes_is_saved_whole_and_goes_on_from_its_file(tmp_path: Path) -> None:
    script = str(tiny.ROOT / "tests" / "sharded.py")
    ended = launch("torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, str(tmp_path))
    assert ended.returncode == 0 and ended.stdout.count("equal") == 2, ended.stdout + ended.stderr


@pytest.mark.slow
def test_ctrl_c_on_two_processes_saves_and_ends_them(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autog", "pretrain", str(recipe), "--accelerate-config", "cpu_pair"]
    process = subprocess.Popen(
        [*command, "--run", str(tmp_path / "run")],
        env=tiny.environment({"AUTOG_PAUSE": "step:0.3"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert Lines(process).wait_for("step      3/")
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    stop = rows(tmp_path / "run", "events")[-1]
    assert stop["event"] == "stop" and stop["why"] == "signal"
    assert (tmp_path / "run" / f"step-{stop['step']:06d}" / "training" / "manifest.json").is_file()
