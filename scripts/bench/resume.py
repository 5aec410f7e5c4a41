"""Does resuming take longer the more was trained? Whole-process time of one step after 1 M and after 50 M tokens.

    python scripts/bench/resume.py

A very small model reads 1 M tokens a step. Each measured call resumes, trains one step, saves and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH = 1_048_576


def recipe_for(folder: Path) -> Path:
    """One layer of width 16 over 40 MB of made-up text."""
    pick = np.random.default_rng(0)
    letters = np.array(list("etaoin shrdlu"))
    lines = ("".join(pick.choice(letters, 4000)) for _ in range(10_000))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    path = folder / "long.yaml"
    path.write_text(
        "name: long\nmodel: {model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, "
        "num_attention_heads: 1}\ntokenizer: {train: {vocab_size: 270}}\n"
        "data:\n  sequence_length: 128\n  validation: 0\n"
        f"  sources: [{{name: t, weight: 1, path: {folder}/texts.jsonl}}]\n"
        "optimizer: {learning_rate: 1e-3}\nschedule: {type: constant}\n"
        f"train: {{steps: 60, batch_tokens: {BATCH}, micro_batch: 256, precision: fp32}}\n"
        "evaluate: {every: 0}\nsamples: {prompts: []}\ncheckpoint: {every: 100}\n"
    )
    return path


def call(recipe: Path, folder: Path, steps: int) -> float:
    """Wall seconds of `autog pretrain --stop-after steps`."""
    command = [sys.executable, "-m", "autog", "pretrain", str(recipe), "--run", str(folder / "run"), "--cpu"]
    environment = {**os.environ, "AUTOG_HOME": str(folder / "home")}
    begun = time.perf_counter()
    subprocess.run([*command, "--stop-after", str(steps)], env=environment, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = recipe_for(folder)
        call(recipe, folder, 1)
        early = [call(recipe, folder, 1) for _ in range(3)]
        call(recipe, folder, 46)
        late = [call(recipe, folder, 1) for _ in range(3)]
    print(f"one step after  1-3 M tokens: {', '.join(f'{value:.2f}' for value in early)} s, best {min(early):.2f} s")
    print(f"one step after 50-52 M tokens: {', '.join(f'{value:.2f}' for value in late)} s, best {min(late):.2f} s")


if __name__ == "__main__":
    main()
