"""Runs and checkpoints on disk: where they are, whether they are whole, which is the newest. No torch here."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autog.errors import AutogError, UsageError

CHECKPOINT = re.compile(r"step-(\d{6,})")
MANIFEST = Path("training") / "manifest.json"
JSONL_FILES = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "events.jsonl")


def home() -> Path:
    """Where token stores live: $AUTOG_HOME, by default ~/.cache/autog."""
    return Path(os.environ.get("AUTOG_HOME") or Path.home() / ".cache" / "autog")


def fsync_directory(directory: Path) -> None:
    """Makes names inside a directory durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, content: bytes | str) -> None:
    """Writes a new file and waits until it is on disk."""
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes | str) -> None:
    """Replaces a file at once or not at all, and waits until it is on disk."""
    partial = path.with_name(f".{path.name}.partial")
    write_durably(partial, content)
    partial.replace(path)
    fsync_directory(path.parent)


def to_json(content: Any) -> str:
    """JSON as autog writes it: readable, stable, and without NaN."""
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Reads JSON; AutogError names the file if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AutogError(f"{path} cannot be read ({error}): restore it, or start a new run") from None


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: a Hugging Face directory with the training state inside."""

    path: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        """What training/state.json holds."""
        return read_json(self.path / "training" / "state.json")

    @property
    def resumable(self) -> bool:
        """Whether the optimizer is inside, so that training can continue from here."""
        return (self.path / "training" / "optimizer.safetensors").is_file()


def write_manifest(directory: Path) -> None:
    """Records size and sha256 of every file of a checkpoint; the last file to be written."""
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    write_durably(directory / MANIFEST, to_json({"format": 1, "files": files}))


def problem(directory: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if every file is as it was written."""
    files = manifest_files(directory / MANIFEST)
    if files is None:
        return f"{MANIFEST} is missing or damaged"
    for name, (size, _) in files.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    for name, (_, sha256) in files.items():
        if file_sha256(directory / name) != sha256:
            return f"{name} does not match its checksum"
    return None


def manifest_files(path: Path) -> dict[str, tuple[int, str]] | None:
    """(bytes, sha256) of every file that a manifest names; None if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        if path.is_symlink() or not text.endswith("\n") or manifest["format"] != 1:
            return None
        return {name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def checkpoints(directory: Path) -> list[Checkpoint]:
    """The committed checkpoints of a run, newest step first, not yet verified."""
    if not directory.is_dir():
        return []
    found = [(CHECKPOINT.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir()]
    ordered = sorted((Checkpoint(path, int(match[1])) for match, path in found if match), key=lambda it: -it.step)
    return ordered


def checkpoint_name(step: int) -> str:
    """The folder of a step: step-000500."""
    return f"step-{step:06d}"


# -- records of a run -------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a record file; a torn last line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


class Records:
    """The jsonl files of a run: appended line by line, cut back to the step that a run resumes from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, IO[bytes]] = {}

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Adds one line, visible to others at once."""
        line = json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        try:
            if name not in self.files:
                self.files[name] = (self.directory / name).open("ab", buffering=0)
            if self.files[name].write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise AutogError(
                f"{self.directory / name} could not be written ({error.strerror}): free some space, repeat the command"
            ) from None

    def sync(self) -> None:
        """Waits until all lines are on disk."""
        for file in self.files.values():
            os.fsync(file.fileno())

    def cut(self, step: int, names: Iterable[str] = JSONL_FILES) -> None:
        """Drops lines past `step` and a torn last line from every record file, or from those named."""
        self.close()
        for name in names:
            path = self.directory / name
            if path.exists():
                kept = [row for row in read_jsonl(path) if row.get("step", 0) <= step]
                replace_durably(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def close(self) -> None:
        """Closes the files; they open again when needed."""
        for file in self.files.values():
            file.close()
        self.files.clear()


# -- runs -------------------------------------------------------------------------------------------------------------


class Run:
    """A folder that holds one training run: its recipe, records and checkpoints."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.records = Records(directory)
        self.lock_file: IO[str] | None = None
        self.verified: set[Path] = set()

    @classmethod
    def named(cls, name: str) -> Run:
        """`runs/NAME`, or a path if it holds a slash; UsageError if it is neither."""
        if "/" in name or os.sep in name:
            return cls(Path(name).expanduser())
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", name):
            raise UsageError(f"--run {name!r} is no name for a run: use letters, digits, '.', '_' and '-', or a path")
        return cls(Path("runs") / name)

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def started(self) -> bool:
        """Whether a run was begun here: its recipe is pinned."""
        return (self.directory / "recipe.yaml").is_file()

    def lock(self) -> None:
        """Takes the run for this process alone; UsageError if another one has it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.lock_file = (self.directory / "lock").open("a+")
        except OSError as error:
            raise UsageError(f"{self.directory} cannot be written ({error.strerror}): choose another --run") from None
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock_file.seek(0)
            holder = self.lock_file.read().strip() or "another process"
            raise UsageError(f"run {self.name!r} is in use by {holder}: wait for it, or choose another --run") from None
        self.lock_file.truncate(0)
        self.lock_file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.lock_file.flush()

    def unlock(self) -> None:
        """Lets others have the run."""
        self.records.close()
        if self.lock_file is not None:
            self.lock_file.close()
            self.lock_file = None

    def write(self, name: str, content: Any) -> None:
        """Replaces a JSON (or text) file of the run, durably."""
        replace_durably(self.directory / name, content if isinstance(content, str) else to_json(content))

    def read(self, name: str) -> Any:
        """A JSON file of the run."""
        return read_json(self.directory / name)

    def latest(self, refused: list[str] | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies and can be resumed; damaged ones are set aside and named in `refused`."""
        for checkpoint in checkpoints(self.directory):
            wrong = problem(checkpoint.path)
            if wrong is None:
                self.verified.add(checkpoint.path)
                if checkpoint.resumable:
                    return checkpoint
                continue
            set_aside(checkpoint)
            if refused is not None:
                refused.append(f"{checkpoint.path.name} is damaged ({wrong}): set aside as .bad-{checkpoint.path.name}")
        return None

    def newest_whole(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, for a reader: nothing is renamed."""
        return next((checkpoint for checkpoint in checkpoints(self.directory) if self.verifies(checkpoint)), None)

    def verifies(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is whole; what was found whole is not read again by this process."""
        if checkpoint.path not in self.verified and problem(checkpoint.path) is None:
            self.verified.add(checkpoint.path)
        return checkpoint.path in self.verified

    def leftovers(self) -> Iterator[Path]:
        """Half-written or half-deleted folders that a crash left behind."""
        for path in self.directory.iterdir():
            if path.name.startswith((".partial-", ".trash-")) and path.is_dir():
                yield path

    def clear(self) -> None:
        """Removes everything of the run but its lock: a fresh start."""
        for path in self.directory.iterdir():
            if path.name == "lock":
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def set_aside(checkpoint: Checkpoint) -> Path:
    """Renames a damaged checkpoint so that its step can be written again."""
    target = checkpoint.path.with_name(f".bad-{checkpoint.path.name}")
    number = 1
    while target.exists():
        number += 1
        target = checkpoint.path.with_name(f".bad-{checkpoint.path.name}-{number}")
    checkpoint.path.rename(target)
    return target
