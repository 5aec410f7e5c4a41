"""Small real things that tests share: corpora, a recipe, a tokenizer, token stores, and `autog` as a process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
SYLLABLES = ["ka", "lo", "mi", "tu", "re", "san", "vor", "pel", "qui", "zen", "dra", "osh", "é", "ño", "ß", "雨"]


def words(seed: int, count: int = 60) -> list[str]:
    """A vocabulary of made-up words; another one for each seed."""
    pick = random.Random(f"words {seed}")
    return ["".join(pick.choices(SYLLABLES, k=pick.randint(1, 3))) for _ in range(count)]


def texts(seed: int, documents: int, longest: int = 60) -> list[str]:
    """Documents of made-up sentences, all different."""
    pick, vocabulary = random.Random(f"texts {seed}"), words(seed)
    made = []
    for number in range(documents):
        body = pick.choices(vocabulary, k=pick.randint(5, longest))
        made.append(f"{number} {' '.join(body)}{pick.choice('.!?')}")
    return made


def write_jsonl(path: Path, rows: Iterable[str]) -> Path:
    """Texts as a jsonl file with one column, `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return path


def corpus(path: Path, seed: int = 0, documents: int = 300) -> Path:
    """A jsonl file of made-up documents."""
    return write_jsonl(path, texts(seed, documents))


def train_tokenizer(directory: Path, vocab_size: int = 320, bos: bool = False) -> Path:
    """Writes a small byte-level BPE into a folder."""
    from autog.recipe import TokenizerChoice
    from autog.tokens import choose

    directory.mkdir(parents=True, exist_ok=True)
    choice = TokenizerChoice.model_validate({"train": {"vocab_size": vocab_size}, "bos": bos})
    choose(choice, [text for seed in range(3) for text in texts(seed, 100)]).save(directory)
    return directory


def merged(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with nested changes; a section of one is merged, anything else replaced."""
    result = dict(content)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict) and key not in ("model", "tokenizer")
        result[key] = merged(result[key], value) if both else value
    return result


def recipe_dict(*corpora: Path, **changes: Any) -> dict[str, Any]:
    """A recipe that trains in a second: 2 layers of width 32 on these files, equal weights; sections can be changed."""
    sources = [{"name": path.stem, "weight": 1, "path": str(path)} for path in corpora]
    content: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        "tokenizer": {"train": {"vocab_size": 320}},
        "data": {
            "sequence_length": 32,
            "validation": 0.1,
            "sources": sources or [{"name": "stories", "weight": 1, "embedded": "stories"}],
        },
        "optimizer": {"learning_rate": 0.003},
        "schedule": {"type": "cosine", "warmup_steps": 2},
        "train": {
            "steps": 12,
            "batch_tokens": 256,
            "micro_batch": 4,
            "precision": "fp32",
            "compile": False,
            "log_every": 1,
        },
        "evaluate": {"every": 6, "tokens": 512},
        "samples": {"every": 0, "prompts": ["ka"], "max_new_tokens": 8},
        "checkpoint": {"every": 4, "keep": 3},
    }
    return merged(content, changes)


def write_recipe(path: Path, content: Mapping[str, Any]) -> Path:
    """A recipe as a YAML file."""
    from autog.recipe_file import dump_yaml

    path.write_text(dump_yaml(dict(content)), encoding="utf-8")
    return path


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment, from which `autog` can be imported; None removes a variable."""
    variables: dict[str, str | None] = {**os.environ, "PYTHONPATH": str(ROOT), **(changes or {})}
    return {key: value for key, value in variables.items() if value is not None}


def autog(
    *arguments: str | Path, env: Mapping[str, str | None] | None = None, cwd: Path | None = None, timeout: float = 240
) -> tuple[int, str, str]:
    """Runs `python -m autog ...` as a real process: (exit code, standard output, standard error)."""
    command = [sys.executable, "-m", "autog", *map(str, arguments)]
    ended = subprocess.run(
        command, env=environment(env), cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


def write_store(directory: Path, ids: np.ndarray, done: bool, document: int = 50) -> Path:
    """A token store whose training side holds exactly these ids, in documents of that many tokens."""
    from autog.data.store import StoreWriter

    writer = StoreWriter(directory, {"identity": {"kind": "path", "location": directory.name}}, 60_000)
    assert writer.acquire()
    for start in range(writer.tokens["train"], len(ids), document):
        writer.append("train", ids[start : start + document], start)
    writer.commit(None if done else {"at": len(ids)}, done=done)
    writer.release()
    return directory
