"""What the token store promises: what was committed stays, what was not is forgotten, and nothing is in both splits."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import environment, texts

from autog.data.fill import store_facts
from autog.data.store import Duplicates, StoreWriter, TokenStore, is_validation, store_key, text_hash
from autog.errors import AutogError
from autog.tokens import Tokenizer

FILES = ["train.bin", "train.idx", "val.bin", "val.idx", "hashes.bin", "manifest.json"]


def opened(directory: Path, vocab_size: int = 1000) -> StoreWriter:
    writer = StoreWriter(directory, {"identity": {"kind": "path", "location": "here"}}, vocab_size)
    assert writer.acquire()
    return writer


def append(writer: StoreWriter, first: int, stop: int) -> None:
    """Documents first..stop; every third is a validation document, some are repeated."""
    for number in range(first, stop):
        ids = np.arange(number % 17 + 1, dtype=np.uint32) + number % 900
        writer.append("val" if number % 3 == 0 else "train", ids, number % 40)


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES}


def undisturbed(directory: Path) -> dict[str, bytes]:
    """The files of a store that was filled with 100 documents in one go."""
    writer = opened(directory)
    append(writer, 0, 60)
    writer.commit({"at": 60})
    append(writer, 60, 100)
    writer.commit(None, done=True)
    writer.release()
    return contents(directory)


def test_what_was_not_committed_is_forgotten_and_the_store_ends_byte_identical(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "whole")
    writer = opened(tmp_path / "cut")
    append(writer, 0, 60)
    writer.commit({"at": 60})
    append(writer, 60, 83)
    writer.release()  # flushed to the files, but past the manifest: what a crash leaves
    assert len((tmp_path / "cut" / "train.bin").read_bytes()) > writer.manifest["train"]["tokens"] * 2
    writer = opened(tmp_path / "cut")
    assert writer.manifest["position"] == {"at": 60}
    append(writer, 60, 100)
    writer.commit(None, done=True)
    writer.release()
    assert contents(tmp_path / "cut") == expected


@given(cuts=st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=8))
def test_any_sequence_of_commits_and_crashes_gives_the_same_files(
    cuts: list[tuple[int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("store")
    expected = undisturbed(directory / "whole")
    for upto, commits in cuts:
        writer = opened(directory / "cut")
        start = (writer.manifest["position"] or {"at": 0})["at"]
        append(writer, start, upto)
        if commits and upto >= start:
            writer.commit({"at": upto})
        writer.release()
    writer = opened(directory / "cut")
    append(writer, (writer.manifest["position"] or {"at": 0})["at"], 100)
    writer.commit(None, done=True)
    writer.release()
    assert contents(directory / "cut") == expected


@pytest.mark.parametrize("rubbish", [b"", b"{", b'{"format": 1', bytes(100)])
def test_a_manifest_that_was_being_written_is_not_read(rubbish: bytes, tmp_path: Path) -> None:
    writer = opened(tmp_path)
    append(writer, 0, 30)
    writer.commit({"at": 30})
    writer.release()
    before = contents(tmp_path)
    (tmp_path / ".manifest.json.partial").write_bytes(rubbish)
    writer = opened(tmp_path)
    assert writer.manifest["position"] == {"at": 30}
    writer.commit({"at": 30})
    writer.release()
    assert contents(tmp_path) == before
    assert not (tmp_path / ".manifest.json.partial").exists()


def test_files_shorter_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    append(writer, 0, 30)
    writer.commit({"at": 30})
    writer.release()
    with (tmp_path / "train.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(AutogError, match=r"train\.bin is shorter than its manifest says: remove"):
        StoreWriter(tmp_path, {}, 1000).acquire()


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    writer.commit(None)
    writer.release()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AutogError, match=r"manifest\.json"):
        StoreWriter(tmp_path, {}, 1000).acquire()
    with pytest.raises(AutogError, match=r"manifest\.json"):
        TokenStore(tmp_path, 4)


def test_a_store_has_one_writer_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from autog.data.store import StoreWriter\n"
        "writer = StoreWriter(pathlib.Path(sys.argv[1]), {}, 9)\n"
        "print(writer.acquire(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    mine = StoreWriter(tmp_path, {}, 9)
    assert not mine.acquire()
    other.kill()
    other.communicate()
    assert mine.acquire()
    mine.release()


def test_readers_see_only_what_was_committed(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    reader = TokenStore(tmp_path, 4)
    assert (reader.tokens("train"), reader.rows("val"), reader.done) == (0, 0, False)
    append(writer, 0, 30)
    reader.refresh()
    assert reader.tokens("train") == 0
    writer.commit({"at": 30})
    assert reader.tokens("train") == 0  # until it looks again
    reader.refresh()
    assert reader.tokens("train") == writer.tokens["train"] > 0
    first = reader.row("train", 0).copy()
    append(writer, 30, 60)
    writer.commit(None, done=True)
    reader.refresh()
    assert reader.done and (reader.row("train", 0) == first).all()
    assert len(reader.row("train", reader.rows("train") - 1)) == 5
    writer.release()


def test_index_files_hold_the_end_of_every_document(tmp_path: Path) -> None:
    undisturbed(tmp_path)
    for split in ("train", "val"):
        ends = np.fromfile(tmp_path / f"{split}.idx", dtype="<u8")
        ids = np.fromfile(tmp_path / f"{split}.bin", dtype="<u2")
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert len(ends) == manifest[split]["documents"] and ends[-1] == len(ids) == manifest[split]["tokens"]
        numbers = [number for number in range(100) if (number % 3 == 0) == (split == "val")]
        for number, start, end in zip(numbers, [0, *ends], ends):
            assert ids[int(start) : int(end)].tolist() == [number % 900 + place for place in range(number % 17 + 1)]


# -- duplicates -------------------------------------------------------------------------------------------------------


@given(digests=st.lists(st.integers(0, 30) | st.integers(0, 2**64 - 1), max_size=300), data=st.data())
def test_duplicates_are_counted_exactly_whenever_it_is_asked(
    digests: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("digests") / "hashes.bin"
    split = data.draw(st.integers(0, len(digests)))
    np.array(digests[:split], dtype="<u8").tofile(path)
    counter = Duplicates(path, split)  # as after a restart
    for number, digest in enumerate(digests[split:], start=split + 1):
        counter.add(digest)
        if data.draw(st.booleans()):
            assert counter.count() == number - len(set(digests[:number]))
    assert counter.count() == len(digests) - len(set(digests))


# -- the split --------------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=100), small=st.floats(0, 1), large=st.floats(0, 1))
def test_a_larger_share_keeps_what_a_smaller_one_held_out(text: str, small: float, large: float) -> None:
    small, large = sorted((small, large))
    assert is_validation(text, large) or not is_validation(text, small)
    assert is_validation(text, 1.0) and not is_validation(text, 0.0)


def test_the_share_that_is_held_out_is_the_share_asked_for() -> None:
    documents = texts(3, 20_000, longest=8)
    for share in (0.005, 0.05, 0.5):
        held_out = sum(is_validation(text, share) for text in documents)
        assert abs(held_out - share * 20_000) < 4 * (20_000 * share * (1 - share)) ** 0.5


def test_the_split_is_the_same_in_every_process_and_version() -> None:
    assert text_hash("autog") == 0xB0CA6F9DBA677AE4
    assert [number for number in range(30) if is_validation(str(number), 0.1)] == [3, 9, 16, 21]


# -- keys -------------------------------------------------------------------------------------------------------------


def facts(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    given = {
        "identity": {"kind": "path", "location": "/a"},
        "revision": {"files": []},
        "share": 0.1,
        "evaluated": False,
    }
    given |= changes
    return store_facts(given["identity"], given["revision"], tokenizer, given["share"], given["evaluated"])


def test_a_store_is_named_by_all_that_changes_its_tokens(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    key = store_key(facts(tokenizer))
    assert key == store_key(facts(Tokenizer.load(tokenizer_folder)))
    for change in (
        {"identity": {"kind": "path", "location": "/b"}},
        {"revision": {"files": [["/a", 1, 2]]}},
        {"share": 0.2},
        {"evaluated": True},
    ):
        assert store_key(facts(tokenizer, **change)) != key
    from tiny import train_tokenizer

    other = Tokenizer.load(train_tokenizer(tmp_path / "other", vocab_size=330))
    assert store_key(facts(other)) != key


def test_name_weight_language_and_licence_do_not_fill_a_store_again() -> None:
    from autog.data.sources import identity
    from autog.recipe import Source

    one = Source.model_validate({"name": "a", "weight": 1, "path": "/x.jsonl"})
    two = Source.model_validate({"name": "b", "weight": 0.3, "path": "/x.jsonl", "language": "en", "license": "mit"})
    assert identity(one) == identity(two)
    for change in ({"column": "body"}, {"encoding": "cp1252"}, {"filter": {"min_chars": 3}}, {"path": "/y.jsonl"}):
        assert identity(Source.model_validate({"name": "a", "weight": 1, "path": "/x.jsonl", **change})) != identity(
            one
        )


def test_a_store_locked_by_a_reader_of_its_lock_file_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not StoreWriter(tmp_path, {}, 9).acquire()
    writer = StoreWriter(tmp_path, {}, 9)
    assert writer.acquire()
    writer.release()
