"""The screen of a run: a live line on a terminal, one plain line per logged step elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from autog.terminal import printable

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_POINTS = 40


def sparkline(values: list[float]) -> str:
    """The course of a number as a row of blocks."""
    values = values[-SPARKLINE_POINTS:]
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def short_count(value: float) -> str:
    """1234567 -> 1.23M."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def plain_line(row: dict[str, Any], steps: int, eta_seconds: float) -> str:
    """A logged step in one line of plain text."""
    loss = "non-finite" if row["loss"] is None else f"{row['loss']:.4f}"
    norm = "non-finite" if row["grad_norm"] is None else f"{row['grad_norm']:.2f}"
    return (
        f"step {row['step']:>6}/{steps}  loss {loss}  lr {row['learning_rate']:.2e}  norm {norm}  "
        f"{short_count(row['tokens_per_second'])} tok/s  mfu {row['mfu']:.1%}  wait {row['data_wait_ms']:.1f} ms  "
        f"{row['memory_gib']:.2f} GiB  eta {clock(eta_seconds) if eta_seconds else '-'}"
    )


class Display:
    """Shows a run to a person; silent in all but the main process."""

    def __init__(self, steps: int, active: bool) -> None:
        self.steps, self.active = steps, active
        self.console = Console(highlight=False, soft_wrap=True)
        self.losses: list[float] = []
        self.live: Live | None = None
        self.begun: tuple[float, int] | None = None

    def __enter__(self) -> Display:
        if self.active and self.console.is_terminal:
            columns = TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn()
            self.progress = Progress(*columns, TextColumn("{task.fields[eta]}"), console=self.console)
            self.task = self.progress.add_task("training", total=self.steps, eta="")
            self.status = Text("waiting for the first step")
            self.live = Live(Group(self.progress, self.status), console=self.console, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, message: str) -> None:
        """One line for the person, whatever it holds."""
        if self.active:
            self.console.print(Text(printable(message)))

    def row(self, row: dict[str, Any]) -> None:
        """A logged step."""
        if not self.active:
            return
        if row["loss"] is not None:
            self.losses.append(row["loss"])
        if self.begun is None:
            self.begun = (time.monotonic(), row["step"])
        eta = self.eta_seconds(row)
        if self.live is None:
            self.console.print(plain_line(row, self.steps, eta))
            return
        self.progress.update(self.task, completed=row["step"], eta=f"eta {clock(eta) if eta else '-'}")
        line = plain_line(row, self.steps, eta).split("  ", 1)[1].rsplit("  eta", 1)[0]
        self.status.plain = f"{line}\n{sparkline(self.losses)}"

    def eta_seconds(self, row: dict[str, Any]) -> float:
        """Time left at the pace since this process's first logged step, pauses included."""
        assert self.begun is not None
        elapsed, steps = time.monotonic() - self.begun[0], row["step"] - self.begun[1]
        if steps == 0:
            return 0.0
        return (self.steps - row["step"]) * elapsed / steps

    def evaluation(self, row: dict[str, Any]) -> None:
        """Validation figures in one line."""
        values = ((name, value) for name, value in row["loss"].items() if value is not None)
        losses = "  ".join(f"{name} {value:.4f}" for name, value in values)
        bits = row["bits_per_byte"]["mixed"]
        tail = f"  (perplexity {row['perplexity']['mixed']:.2f}, {bits:.3f} bits per byte)" if bits is not None else ""
        self.say(f"step {row['step']:>6} validation  {losses}{tail}")

    def sample(self, row: dict[str, Any]) -> None:
        """A text that the model wrote."""
        self.say(f"step {row['step']:>6} sample  {row['prompt']}|{row['text']}")
