"""The token store on disk: tokens appended by one writer, committed by a manifest, mapped by any reader."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from autog.errors import AutogError
from autog.hooks import pause
from autog.runs import fsync_directory, home, replace_durably, to_json

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
SPLIT_RULE = "blake2b-64"
WIDE_VOCABULARY = 65_536
HASHED_CHARS = 1 << 20


def token_type(vocab_size: int) -> np.dtype:
    """Little-endian uint16, or uint32 from a vocabulary of 65,536 up."""
    return np.dtype("<u2") if vocab_size < WIDE_VOCABULARY else np.dtype("<u4")


def store_key(facts: dict[str, Any]) -> str:
    """The name of a store: a digest of everything that changes its tokens, and of nothing else."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def store_directory(key: str) -> Path:
    """$AUTOG_HOME/tokens/<key>."""
    return home() / "tokens" / key


def text_hash(text: str) -> int:
    """64 bits of blake2b of a text in UTF-8; lone surrogates count as their code points."""
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(text), HASHED_CHARS):  # a long text is never copied as a whole
        digest.update(text[start : start + HASHED_CHARS].encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "little")


def is_validation(text: str, share: float) -> bool:
    """Whether a document (or its group) is held out: the same answer in every run, order and process count."""
    return is_held_out(text_hash(text), share)


def is_held_out(digest: int, share: float) -> bool:
    """The same for a text whose hash is known."""
    return digest < share * 2**64


def empty_manifest(facts: dict[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """What a store's manifest says before anything is in it."""
    return {
        "format": 1,
        **facts,
        "dtype": dtype.str,
        "train": {"tokens": 0, "documents": 0},
        "val": {"tokens": 0, "documents": 0},
        "position": None,
        "skipped": {},
        "duplicates": 0,
        "done": False,
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """What a store's manifest says; AutogError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AutogError(f"{path} is damaged ({error}): remove {path.parent} to fill it again") from None


class TokenStore:
    """The reading side: committed tokens as rows of a fixed length, by number, without copies of the files."""

    def __init__(self, directory: Path, sequence_length: int) -> None:
        self.directory = directory
        self.length = sequence_length
        self.manifest: dict[str, Any] = {}
        self.stamp: tuple[int, int] | None = None
        self.maps: dict[str, np.ndarray] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads the manifest again if it was replaced."""
        path = self.directory / "manifest.json"
        try:
            status = path.stat()
            if (status.st_ino, status.st_mtime_ns) != self.stamp:
                self.manifest = read_manifest(path)
                self.stamp = (status.st_ino, status.st_mtime_ns)
        except FileNotFoundError:
            self.manifest = {}

    @property
    def done(self) -> bool:
        """Whether the source itself ended."""
        return bool(self.manifest.get("done"))

    def tokens(self, split: Split) -> int:
        """Committed tokens."""
        return self.manifest[split]["tokens"] if self.manifest else 0

    def rows(self, split: Split) -> int:
        """Whole rows; each also needs the token after its last one."""
        return max(0, self.tokens(split) - 1) // self.length

    def row(self, split: Split, number: int) -> np.ndarray:
        """Ids of one row and the token that follows it: (sequence_length + 1,), a view of the file."""
        start = number * self.length
        return self._map(split, start + self.length + 1)[start : start + self.length + 1]

    def _map(self, split: Split, tokens: int) -> np.ndarray:
        mapped = self.maps.get(split)
        if mapped is None or len(mapped) < tokens:
            committed = self.tokens(split)
            if tokens > committed:
                raise AutogError(f"{self.directory}/{split}.bin holds {committed:,} tokens, {tokens:,} were asked for")
            path = self.directory / f"{split}.bin"
            mapped = np.memmap(path, dtype=np.dtype(self.manifest["dtype"]), mode="r", shape=(committed,))
            self.maps[split] = mapped
        return mapped


class StoreWriter:
    """The writing side: one process at a time; what was not committed is forgotten."""

    def __init__(self, directory: Path, facts: dict[str, Any], vocab_size: int) -> None:
        self.directory = directory
        self.facts = facts
        self.dtype = token_type(vocab_size)
        self.lock_file: IO[str] | None = None
        self.manifest: dict[str, Any] = {}

    def acquire(self) -> bool:
        """Takes the store for this process and goes back to its last commit; False if another one writes to it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock_file = (self.directory / "lock").open("a+")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock_file.close()
            return False
        self.lock_file = lock_file
        path = self.directory / "manifest.json"
        if path.exists():
            self.manifest = read_manifest(path)
        else:
            self.manifest = empty_manifest(self.facts, self.dtype)
        self._open_files()
        return True

    def _open_files(self) -> None:
        """Opens every file at its committed end; bytes past it are what a crash left."""
        documents = {split: self.manifest[split]["documents"] for split in SPLITS}
        sizes = {f"{split}.bin": self.manifest[split]["tokens"] * self.dtype.itemsize for split in SPLITS}
        sizes |= {f"{split}.idx": documents[split] * 8 for split in SPLITS}
        sizes["hashes.bin"] = sum(documents.values()) * 8
        self.files: dict[str, IO[bytes]] = {}
        for name, size in sizes.items():
            path = self.directory / name
            path.touch()
            if path.stat().st_size < size:
                raise AutogError(f"{path} is shorter than its manifest says: remove {self.directory} to fill it again")
            file = path.open("r+b")
            file.truncate(size)
            file.seek(size)
            self.files[name] = file
        self.tokens = {split: self.manifest[split]["tokens"] for split in SPLITS}
        self.documents = documents
        self.skipped: dict[str, int] = dict(self.manifest["skipped"])
        self.duplicates = Duplicates(self.directory / "hashes.bin", sum(documents.values()))
        self.uncommitted = 0

    def append(self, split: Split, ids: np.ndarray | Iterable[np.ndarray], digest: int) -> None:
        """Adds one document (its end token included), as one array or piece by piece; not committed yet."""
        file, count = self.files[f"{split}.bin"], 0
        try:
            for piece in [ids] if isinstance(ids, np.ndarray) else ids:
                file.write(piece.astype(self.dtype, copy=False).data)
                count += len(piece)
        except BaseException:
            file.seek(self.tokens[split] * self.dtype.itemsize)
            file.truncate()
            raise
        self.tokens[split] += count
        self.documents[split] += 1
        self.files[f"{split}.idx"].write(np.uint64(self.tokens[split]).tobytes())
        self.files["hashes.bin"].write(np.uint64(digest).tobytes())
        self.duplicates.add(digest)
        self.uncommitted += count

    def skip(self, reason: str, rows: int) -> None:
        """Counts rows that are not used."""
        self.skipped[reason] = self.skipped.get(reason, 0) + rows

    def commit(self, position: dict[str, Any] | None, done: bool = False) -> None:
        """Makes everything appended durable, and says from which position the source goes on."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        counts = {split: {"tokens": self.tokens[split], "documents": self.documents[split]} for split in SPLITS}
        self.manifest = {
            **self.manifest,
            **counts,
            "position": position,
            "skipped": dict(sorted(self.skipped.items())),
            "duplicates": self.duplicates.count(),
            "done": done,
        }
        pause("commit")
        replace_durably(self.directory / "manifest.json", to_json(self.manifest))
        self.uncommitted = 0

    def release(self) -> None:
        """Closes the files and lets another process write."""
        for file in getattr(self, "files", {}).values():
            file.close()
        if self.lock_file is not None:
            self.lock_file.close()
            self.lock_file = None
        if self.directory.exists():
            fsync_directory(self.directory)


class Duplicates:
    """Counts exact duplicates: sorted runs of 64-bit digests in memory, merged as they grow (8 bytes a document)."""

    def __init__(self, path: Path, documents: int) -> None:
        digests = np.fromfile(path, dtype="<u8", count=documents) if documents else np.zeros(0, dtype="<u8")
        unique = np.unique(digests)
        self.found = len(digests) - len(unique)
        self.sorted: list[np.ndarray] = [unique]
        self.recent: list[int] = []

    def add(self, digest: int) -> None:
        """Notes one more document."""
        self.recent.append(digest)

    def count(self) -> int:
        """How many documents so far repeat an earlier one."""
        new = np.unique(np.array(self.recent, dtype="<u8"))
        self.found += len(self.recent) - len(new)
        for known in self.sorted:
            if len(known) and len(new):
                places = np.minimum(np.searchsorted(known, new), len(known) - 1)
                repeated = known[places] == new
                self.found += int(repeated.sum())
                new = new[~repeated]
        self.recent = []
        self.sorted.append(new)
        while len(self.sorted) > 1 and len(self.sorted[-2]) <= 2 * len(self.sorted[-1]):
            last, before = self.sorted.pop(), self.sorted.pop()
            self.sorted.append(np.union1d(before, last))
        return self.found
