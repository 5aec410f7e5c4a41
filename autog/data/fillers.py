"""The trainer's side of filling: one process per source, watched, restarted when it hangs, heard when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from autog.data.fill import Job, as_message
from autog.errors import AutogError, UsageError

KILL_SECONDS = 60.0
STOP_SECONDS = 5.0
FRUITLESS_RESTARTS = 5


def stall_seconds() -> float:
    """After how long without data a source is said to stall; tests cannot wait that long."""
    return float(os.environ.get("AUTOG_STALL_SECONDS", "30"))


class Filler:
    """One background process that fills one store, and what it said last."""

    def __init__(self, job: Job, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self.job = job
        self.tell = tell
        self.error: AutogError | None = None
        self.finished = False
        self.fruitless_restarts = 0
        self.progress: dict[str, Any] = {}
        now = time.monotonic()
        self.heard_at = self.progressed_at = now
        self.stalled = False
        self.last_retry: str = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts the process and a thread that listens to it."""
        command = [sys.executable, "-m", "autog.data.fill"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(as_message(self.job))
            self.process.stdin.flush()
        except OSError:
            pass  # it died before it read its job, which `watch` will see
        self.heard_at = time.monotonic()
        threading.Thread(target=self.listen, args=(self.process,), daemon=True).start()

    def listen(self, process: subprocess.Popen[str]) -> None:
        """Takes in every event of a process until its output closes."""
        assert process.stdout is not None
        for line in process.stdout:
            try:
                facts = json.loads(line)
            except ValueError:
                continue
            self.hear(facts.pop("event"), facts)

    def hear(self, kind: str, facts: dict[str, Any]) -> None:
        """Notes one event."""
        self.heard_at = time.monotonic()
        if kind == "progress":
            if facts != self.progress:
                self.fruitless_restarts = 0
                self.progressed()
            self.progress = facts
        elif kind == "working":
            self.progressed()
        elif kind == "error":
            self.error = (UsageError if facts["usage"] else AutogError)(f"source {self.job.name!r}: {facts['message']}")
        elif kind == "finished":
            self.finished = True
        elif kind == "waiting":
            self.progressed_at = self.heard_at
        elif kind in ("retry", "skipped"):
            self.last_retry = facts.get("error", self.last_retry)
            self.tell(kind, {"source": self.job.name, **facts})

    def progressed(self) -> None:
        """Data came, or are worked on."""
        self.progressed_at = self.heard_at
        if self.stalled:
            self.stalled = False
            self.tell("recovered", {"source": self.job.name})

    def watch(self) -> None:
        """Says when a source stalls, restarts a process that hangs or died, gives up when patience is at its end."""
        if self.process is None or (self.process.poll() is not None and (self.finished or self.error)):
            return  # polling also lets the kernel forget a process that ended
        if self.finished or self.error is not None:
            return
        now = time.monotonic()
        if now - self.progressed_at > self.job.patience_seconds:
            self.kill()
            detail = f" (last error: {self.last_retry})" if self.last_retry else ""
            minutes = self.job.patience_seconds / 60
            self.error = AutogError(
                f"source {self.job.name!r} gave nothing for {minutes:g} minutes{detail}: repeat the command when it is "
                "reachable again; what was read is kept"
            )
        elif self.process.poll() is not None and not self.finished:
            self.restart(f"its process ended with code {self.process.returncode}")
        elif now - self.heard_at > KILL_SECONDS:
            self.kill()
            self.restart(f"its process was silent for {KILL_SECONDS:g} s")
        elif now - self.progressed_at > stall_seconds() and not self.stalled:
            self.stalled = True
            self.tell("stall", {"source": self.job.name, "seconds": round(now - self.progressed_at)})

    def restart(self, why: str) -> None:
        """Begins again from the last commit."""
        time.sleep(0.2)  # its last words may still be on the way
        if self.finished or self.error is not None:
            return
        self.fruitless_restarts += 1
        if self.fruitless_restarts > FRUITLESS_RESTARTS:
            self.error = AutogError(
                f"source {self.job.name!r}: its filler failed {FRUITLESS_RESTARTS} times without getting further "
                f"({why}): what it printed above says why"
            )
            return
        self.tell("restart", {"source": self.job.name, "why": why})
        self.start()

    def kill(self) -> None:
        """Ends the process at once; the store keeps its last commit."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Asks the process to commit and end."""
        if self.process is not None and self.process.poll() is None and self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                return  # it ended by itself in between


class Fillers:
    """All fillers of a run, with one thread that watches over them."""

    def __init__(self, jobs: list[Job], tell: Callable[[str, dict[str, Any]], None]) -> None:
        self.fillers = [Filler(job, tell) for job in jobs]
        self.stopping = threading.Event()
        self.watcher: threading.Thread | None = None

    def start(self) -> None:
        """Starts every process; the watching thread owns them, so they end with this process."""
        ready = threading.Event()
        self.watcher = threading.Thread(target=self.watch, args=(ready,), daemon=True)
        self.watcher.start()
        ready.wait()

    def watch(self, ready: threading.Event) -> None:
        """Lives as long as the run: the kernel ties a child's life to the thread that started it."""
        try:
            for filler in self.fillers:
                filler.start()
        except OSError as error:
            for filler in self.fillers:
                filler.error = AutogError(f"no process could be started to read the sources ({error.strerror})")
        finally:
            ready.set()
        while not self.stopping.wait(0.5):
            for filler in self.fillers:
                filler.watch()
        for filler in self.fillers:
            filler.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for filler in self.fillers:
            if filler.process is not None:
                try:
                    filler.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    filler.kill()

    def error(self, names: list[str]) -> AutogError | None:
        """The first failure among these sources."""
        return next((filler.error for filler in self.fillers if filler.error and filler.job.name in names), None)

    @property
    def finished(self) -> bool:
        """Whether every store has what the run needs."""
        return all(filler.finished for filler in self.fillers)

    def stop(self) -> None:
        """Ends all processes; each commits first."""
        self.stopping.set()
        if self.watcher is not None:
            self.watcher.join()
