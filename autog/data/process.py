"""What every helper process of a run does first: tie its life to its parent's."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time


def die_with_parent(parent: int) -> None:
    """Makes the kernel end this process when its parent dies; elsewhere than on Linux a thread watches for it."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    if sys.platform != "linux":
        threading.Thread(target=exit_when_orphaned, args=(parent,), daemon=True).start()


def exit_when_orphaned(parent: int) -> None:
    """Polls for the parent's death."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class Lines:
    """JSON lines on standard output, from any thread; what a library prints goes to standard error instead."""

    def __init__(self) -> None:
        self.output, self.lock = sys.stdout, threading.Lock()
        sys.stdout = sys.stderr

    def write(self, line: str) -> None:
        """One whole line, at once on its way."""
        with self.lock:
            self.output.write(line + "\n")
            self.output.flush()
