"""Points at which a test may slow a run down (AUTOG_PAUSE="step:0.05,save:0.2"), to hit every window with a kill."""

from __future__ import annotations

import os
import time


def pause(point: str) -> None:
    """Sleeps for the seconds that AUTOG_PAUSE gives this point; nothing by default."""
    for item in os.environ.get("AUTOG_PAUSE", "").split(","):
        name, _, seconds = item.partition(":")
        if name == point:
            time.sleep(float(seconds))
