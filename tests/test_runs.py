"""What runs and checkpoints promise: one process each, whole lines, and no damaged byte that goes unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import environment

from autog.errors import AutogError, UsageError
from autog.runs import Checkpoint, Run, checkpoints, problem, read_json, replace_durably, to_json, write_manifest

CONTENTS = {
    "config.json": b'{"model_type": "llama"}\n',
    "model.safetensors": bytes(range(256)) * 20,
    "generation_config.json": b"{}\n",
    "tokenizer.json": b'{"version": "1.0"}\n',
    "tokenizer_config.json": b"{}\n",
    "training/state.json": b'{"step": 4}\n',
    "training/optimizer.safetensors": bytes(range(255, -1, -1)) * 30,
    "training/recipe.yaml": b"name: tiny\n",
}
FILES = [*CONTENTS, "training/manifest.json"]


def make_checkpoint(run: Path, step: int) -> Path:
    """A folder laid out as a checkpoint is."""
    directory = run / f"step-{step:06d}"
    for name, content in CONTENTS.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_manifest(directory)
    return directory


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", "...", "-rf", ".hidden", "a b", "a\nb", "a\x00b", "é", "~", "$HOME", "a" * 200, "a;b", "*"]
)
def test_bad_names_of_runs_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--run"):
        Run.named(name)


@pytest.mark.parametrize("name", ["quickstart", "v1.2_final-3", "2024"])
def test_a_name_is_a_folder_under_runs(name: str) -> None:
    run = Run.named(name)
    assert run.directory == Path("runs") / name and run.name == name


def test_a_slash_makes_it_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run.named(str(tmp_path / "a b")).directory == tmp_path / "a b"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run.named("~/mine").directory == tmp_path / "mine"


# -- the lock ---------------------------------------------------------------------------------------------------------

HOLD = "import sys; from autog.runs import Run; r = Run.named(sys.argv[1]); r.lock(); print('locked', flush=True); sys.stdin.read()"  # noqa: E501


def hold(run: Path) -> subprocess.Popen[str]:
    """Another process that has the run."""
    command = [sys.executable, "-c", HOLD, str(run)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_refused_and_told_who_has_the_run(tmp_path: Path) -> None:
    other = hold(tmp_path / "mine")
    run = Run(tmp_path / "mine")
    with pytest.raises(UsageError) as caught:
        run.lock()
    said = str(caught.value)
    assert "'mine'" in said and f"process {other.pid} on " in said and "--run" in said
    with pytest.raises(UsageError, match=f"process {other.pid}"):
        run.lock()  # the refused one did not write its own name into the lock
    other.kill()
    other.communicate()
    run.lock()  # a dead process holds nothing
    assert (tmp_path / "mine" / "lock").read_text().startswith("process ")
    run.unlock()
    again = hold(tmp_path / "mine")
    again.communicate()


def test_a_run_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file/run cannot be written \(Not a directory\)"):
        Run(tmp_path / "file" / "run").lock()


# -- records ----------------------------------------------------------------------------------------------------------


def test_records_are_cut_back_to_a_step_and_lose_a_torn_last_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 9):
        run.records.append("metrics.jsonl", {"step": step, "loss": 5.123456789012345 - step / 7, "name": "é"})
        if step % 4 == 0:
            run.records.append("eval.jsonl", {"step": step, "loss": {"mixed": None}})
    run.records.append("events.jsonl", {"event": "start"})
    run.records.sync()
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')
    run.records.cut(5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:5])
    assert [json.loads(line)["step"] for line in (tmp_path / "eval.jsonl").read_text().splitlines()] == [4]
    assert (tmp_path / "events.jsonl").read_text() == '{"event": "start"}\n'
    run.records.append("metrics.jsonl", {"step": 6})
    run.records.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:5]) + b'{"step": 6}\n'
    run.records.cut(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_line_torn_inside_a_letter_is_dropped(tmp_path: Path) -> None:
    line = '{"step": 1, "text": "é"}\n'.encode()
    (tmp_path / "samples.jsonl").write_bytes(line + line[: line.index("é".encode()) + 1])
    Run(tmp_path).records.cut(9)
    assert (tmp_path / "samples.jsonl").read_bytes() == line


def test_a_number_that_json_cannot_hold_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Run(tmp_path).records.append("metrics.jsonl", {"loss": float("nan")})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    replace_durably(tmp_path / "a.json", to_json({"a": 1}))
    with pytest.raises(ValueError):
        replace_durably(tmp_path / "a.json", to_json({"a": float("inf")}))
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(AutogError, match=r"a\.json cannot be read"):
        read_json(tmp_path / "a.json")


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_as_it_was_written_has_no_problem(tmp_path: Path) -> None:
    assert problem(make_checkpoint(tmp_path, 4)) is None
    run = Run(tmp_path)
    found = run.latest()
    assert found == Checkpoint(tmp_path / "step-000004", 4) and found.state == {"step": 4} and found.resumable


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "halved":
        path.write_bytes(content[: len(content) // 2])
    elif how == "short of its last byte":
        path.write_bytes(content[:-1])
    elif how == "lengthened":
        path.write_bytes(content + b"\0")
    elif how == "a link":
        content_of = path.with_name("elsewhere")
        path.rename(content_of)
        path.symlink_to(content_of)
    else:
        place = {"first bit": 0, "middle bit": len(content) // 2, "last bit": len(content) - 1}[how]
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


DAMAGE = ["deleted", "emptied", "halved", "short of its last byte", "lengthened", "a link", "first bit", "middle bit", "last bit"]  # fmt: skip # noqa: E501


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_every_damage_is_found_and_the_checkpoint_before_is_taken(file: str, how: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 4)
    damage(make_checkpoint(tmp_path, 8) / file, how)
    wrong = problem(tmp_path / "step-000008")
    assert wrong is not None and Path(file).name in wrong
    refused: list[str] = []
    found = Run(tmp_path).latest(refused)
    assert found is not None and found.step == 4
    assert refused == [f"step-000008 is damaged ({wrong}): set aside as .bad-step-000008"]
    assert (tmp_path / ".bad-step-000008").is_dir() and not (tmp_path / "step-000008").exists()
    assert [item.step for item in checkpoints(tmp_path)] == [4]


def test_any_flipped_bit_of_the_manifest_itself_is_found(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, 4)
    path = directory / "training" / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, place % 7 + 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            assert problem(directory) is not None, (place, bit)
    path.write_bytes(whole)
    assert problem(directory) is None


def test_when_all_are_damaged_there_is_none_and_each_is_kept_aside(tmp_path: Path) -> None:
    refused: list[str] = []
    for _ in range(2):
        for step in (4, 8):
            (make_checkpoint(tmp_path, step) / "config.json").unlink()
        assert Run(tmp_path).latest(refused) is None
    aside = [".bad-step-000004", ".bad-step-000004-2", ".bad-step-000008", ".bad-step-000008-2"]
    assert len(refused) == 4 and sorted(path.name for path in tmp_path.iterdir()) == aside


def test_only_whole_names_are_checkpoints_and_the_highest_step_is_the_newest(tmp_path: Path) -> None:
    for step in (4, 12, 1_000_000, 999_999):
        make_checkpoint(tmp_path, step)
    for name in ("step-5", "step-000005-old", "my-step-000006", ".partial-step-000007", "notes", "step-abcdef"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000009").write_text("a file")
    assert [item.step for item in checkpoints(tmp_path)] == [1_000_000, 999_999, 12, 4]
    latest = Run(tmp_path).latest()
    assert latest is not None and latest.step == 1_000_000


def test_weights_without_optimizer_are_whole_but_not_what_a_run_resumes_from(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 4)
    directory = make_checkpoint(tmp_path, 8)
    (directory / "training" / "optimizer.safetensors").unlink()
    (directory / "training" / "manifest.json").unlink()
    write_manifest(directory)
    assert problem(directory) is None
    latest = Run(tmp_path).latest()
    assert latest is not None and latest.step == 4 and directory.is_dir()


def test_a_fresh_start_removes_all_but_the_lock(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.lock()
    make_checkpoint(tmp_path, 4)
    (tmp_path / ".partial-step-000008").mkdir()
    run.records.append("metrics.jsonl", {"step": 1})
    assert [path.name for path in run.leftovers()] == [".partial-step-000008"]
    run.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    run.unlock()
