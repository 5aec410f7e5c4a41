"""Training steps beside nanoGPT's train.py on the CPU: same shape, same tokens, interleaved runs, ratio of minima.

    git clone https://github.com/karpathy/nanoGPT /somewhere/nanoGPT
    python scripts/bench/train_step.py /somewhere/nanoGPT --rounds 5 --vocab 50304

Both are whole programs as their users start them: data, forward, backward, clipping, optimizer, one log line per step.
A step's time is what the program itself reports; the first ten steps are left out; the best step of all rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

LAYERS, HEADS, WIDTH, LENGTH, ROWS = 6, 6, 384, 256, 8
WARMUP = 10


def write_tokens(directory: Path, vocabulary: int, tokens: int) -> None:
    """Random ids for both: a train.bin and val.bin for nanoGPT."""
    ids = np.random.default_rng(0).integers(0, min(vocabulary, 50257), tokens).astype(np.uint16)
    for name in ("train", "val"):
        ids.tofile(directory / f"{name}.bin")


def nanogpt(checkout: Path, steps: int, vocabulary: int) -> list[float]:
    """Milliseconds of each step of nanoGPT's own train.py, fp32, without compile (it has no bf16 on CPUs)."""
    folder = checkout / "data" / f"autog_bench_{vocabulary}"
    folder.mkdir(exist_ok=True)
    if not (folder / "train.bin").exists():
        write_tokens(folder, vocabulary, 400_000)
    if vocabulary != 50304:
        import pickle

        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocabulary}))
    else:
        (folder / "meta.pkl").unlink(missing_ok=True)
    shape = [f"--n_layer={LAYERS}", f"--n_head={HEADS}", f"--n_embd={WIDTH}", f"--block_size={LENGTH}"]
    run = [f"--batch_size={ROWS}", "--gradient_accumulation_steps=1", f"--max_iters={steps}", "--eval_iters=1"]
    plain = ["--device=cpu", "--compile=False", "--dtype=float32", "--eval_interval=100000", "--log_interval=1"]
    output = subprocess.run(
        [
            sys.executable,
            "train.py",
            *shape,
            *run,
            *plain,
            f"--dataset={folder.name}",
            "--always_save_checkpoint=False",
        ],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [float(value) for value in re.findall(r"time ([0-9.]+)ms", output)]


def autog(folder: Path, steps: int, vocabulary: int, precision: str) -> list[float]:
    """Milliseconds of each step of `autog pretrain` on a GPT-2 of the same shape."""
    texts = folder / "texts.jsonl"
    if not texts.exists():
        pick = np.random.default_rng(0)
        letters = np.array(list("etaoin shrdlu"))
        lines = ("".join(pick.choice(letters, 2000)) for _ in range(800))
        texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    model = f"{{model_type: gpt2, n_layer: {LAYERS}, n_head: {HEADS}, n_embd: {WIDTH}, vocab_size: {vocabulary}}}"
    recipe = folder / "bench.yaml"
    recipe.write_text(
        f"name: bench\nmodel: {model}\n"
        f"tokenizer: {{train: {{vocab_size: {min(vocabulary, 300)}}}}}\n"
        f"data: {{sequence_length: {LENGTH}, validation: 0, sources: [{{name: t, weight: 1, path: {texts}}}]}}\n"
        f"optimizer: {{learning_rate: 6e-4}}\nschedule: {{warmup_steps: 0}}\n"
        f"train: {{steps: {steps}, batch_tokens: {ROWS * LENGTH}, micro_batch: {ROWS}, log_every: 1, "
        f"precision: {precision}}}\n"
        "evaluate: {every: 0}\nsamples: {prompts: []}\ncheckpoint: {every: 100000}\n"
    )
    run = folder / "run"
    environment = {**os.environ, "AUTOG_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "autog", "pretrain", str(recipe), "--run", str(run), "--fresh", "--cpu"]
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [ROWS * LENGTH / row["tokens_per_second"] * 1e3 for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nanogpt", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--vocab", type=int, default=50304)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {"nanoGPT fp32": [], "autog fp32": [], "autog auto": []}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(arguments.rounds):
            times["nanoGPT fp32"] += nanogpt(arguments.nanogpt, arguments.steps, arguments.vocab)[WARMUP:]
            times["autog fp32"] += autog(Path(place), arguments.steps, arguments.vocab, "fp32")[WARMUP:]
            times["autog auto"] += autog(Path(place), arguments.steps, arguments.vocab, "auto")[WARMUP:]
    import torch

    best = {name: min(values) for name, values in times.items()}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}")
    print(
        f"{LAYERS} layers x {WIDTH}, {ROWS} x {LENGTH} tokens, vocabulary {arguments.vocab}, {arguments.rounds} rounds"
    )
    for name, value in best.items():
        middle = sorted(times[name])[len(times[name]) // 2]
        ratio = best["nanoGPT fp32"] / value
        print(f"{name:<13} best {value:8.1f} ms  median {middle:8.1f} ms  {ratio:5.2f}x nanoGPT (of minima)")


if __name__ == "__main__":
    main()
