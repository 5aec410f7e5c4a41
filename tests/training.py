"""Running trainings in tests: in this process where that is enough, as real processes where it matters."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny

TIMES = ("tokens_per_second", "mfu", "mfu_causal", "data_wait_ms", "memory_gib", "seconds")


def train(recipe: Path, run: Path, *changes: str, **options: Any) -> int:
    """Trains in this process; gives the exit code."""
    from autog.recipe import Recipe
    from autog.runs import Run
    from autog.training.loop import Options, pretrain

    return pretrain(Recipe.load(str(recipe), list(changes)), Run(run), Options(cpu=True, **options))


def rows(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    """A record file of a run without the fields that tell the time."""
    lines = (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def losses(run: Path) -> list[float]:
    """The training loss of every logged step."""
    return [row["loss"] for row in rows(run)]


def weights(run: Path, step: int) -> bytes:
    """The bytes of a checkpoint's weights."""
    return (run / f"step-{step:06d}" / "model.safetensors").read_bytes()


def start(recipe: Path, run: Path, *arguments: str, env: Mapping[str, str | None] | None = None) -> subprocess.Popen:
    """`autog pretrain` as a process of its own."""
    command = [sys.executable, "-m", "autog", "pretrain", str(recipe), "--run", str(run), "--cpu", *arguments]
    return subprocess.Popen(
        command, env=tiny.environment(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class Lines(threading.Thread):
    """Reads a process's output as it comes; `wait_for` returns when a line holds a text."""

    def __init__(self, process: subprocess.Popen) -> None:
        super().__init__(daemon=True)
        self.process, self.lines, self.news = process, [], threading.Condition()
        self.start()

    def run(self) -> None:
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.news.notify_all()

    def wait_for(self, text: str, timeout: float = 90) -> bool:
        """Whether a line that holds the text came in time."""
        with self.news:
            return self.news.wait_for(lambda: any(text in line for line in self.lines), timeout)
