"""One process: what a run leaves behind, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from training import losses, rows, train, weights

from autog.errors import AutogError, UsageError


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return [tiny.corpus(folder / f"{name}.jsonl", seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture
def recipe(tmp_path: Path, corpora: list[Path]) -> Path:
    return tiny.write_recipe(tmp_path / "tiny.yaml", tiny.recipe_dict(*corpora))


def test_a_checkpoint_loads_in_transformers_without_autog_with_the_same_logits_and_generates(
    recipe: Path, tmp_path: Path
) -> None:
    import torch

    from autog.models import build, load_weights, read_config

    assert train(recipe, tmp_path / "run") == 0
    checkpoint = tmp_path / "run" / "step-000012"
    program = f"""
import sys, json, torch
sys.path = [path for path in sys.path if path not in ("", {str(tiny.ROOT)!r})]
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(checkpoint)!r})
tokenizer = AutoTokenizer.from_pretrained({str(checkpoint)!r})
ids = tokenizer("ka lo mi", return_tensors="pt")
text = tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0])
with torch.no_grad():
    logits = model(ids["input_ids"]).logits
assert not any(name == "autog" or name.startswith("autog.") for name in sys.modules)
print(json.dumps([ids["input_ids"].tolist(), logits.tolist(), text]))
"""
    ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    ids, logits, text = json.loads(ended.stdout.splitlines()[-1])
    decoder = build(read_config(checkpoint))
    load_weights(decoder, checkpoint)
    with torch.no_grad():
        ours = decoder(torch.tensor(ids))
    assert torch.allclose(ours, torch.tensor(logits), rtol=0, atol=1e-6)
    assert text.startswith("ka lo mi")


def test_a_run_stopped_and_repeated_equals_an_uninterrupted_one_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "cut", stop_after=5)
    train(recipe, tmp_path / "cut", stop_after=3)
    train(recipe, tmp_path / "cut")
    for name in ("metrics", "eval", "samples"):
        assert rows(tmp_path / "cut", name) == rows(tmp_path / "whole", name)
    assert weights(tmp_path / "cut", 12) == weights(tmp_path / "whole", 12)


def test_a_finished_run_repeated_changes_nothing(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run")
    before = {name: rows(tmp_path / "run", name) for name in ("metrics", "eval", "samples")}
    assert train(recipe, tmp_path / "run") == 0
    assert {name: rows(tmp_path / "run", name) for name in before} == before


def test_the_micro_batch_changes_nothing_but_rounding(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "four")
    train(recipe, tmp_path / "two", "train.micro_batch=2")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "four"), rel=1e-5)


def test_checkpointing_activations_changes_nothing_but_rounding(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "kept")
    train(recipe, tmp_path / "recomputed", "train.checkpointing=true")
    assert losses(tmp_path / "recomputed") == pytest.approx(losses(tmp_path / "kept"), rel=1e-5)


def test_source_tokens_follow_the_weights_exactly(tmp_path: Path, corpora: list[Path]) -> None:
    content = tiny.recipe_dict(*corpora, train={"steps": 125, "log_every": 25}, checkpoint={"every": 1000})
    content["data"]["sources"][0]["weight"] = 0.7
    content["data"]["sources"][1]["weight"] = 0.3
    train(tiny.write_recipe(tmp_path / "r.yaml", content), tmp_path / "run", "evaluate.every=0")
    last = rows(tmp_path / "run")[-1]
    assert last["tokens"] == 125 * 256 == 1000 * 32
    assert last["source_tokens"] == {"one": 700 * 32, "two": 300 * 32}


def test_a_source_shorter_than_its_plan_is_read_again_epoch_after_epoch(tmp_path: Path, corpora: list[Path]) -> None:
    short = tiny.corpus(tmp_path / "short.jsonl", 3, documents=12)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_dict(short, data={"validation": 0.0}))
    assert train(recipe, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["epochs"]["short"] > 2


def test_a_resume_with_another_recipe_is_refused_and_names_the_keys(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", stop_after=4)
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate.*train\.steps.*--run NAME"):
        train(recipe, tmp_path / "run", "train.steps=20", "optimizer.learning_rate=1e-4")
    assert train(recipe, tmp_path / "run") == 0


def test_what_is_free_may_change_on_resume(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", stop_after=4)
    changes = ("train.log_every=2", "checkpoint.keep=all", "evaluate.every=3", "train.micro_batch=2")
    assert train(recipe, tmp_path / "run", *changes) == 0
    assert [row["step"] for row in rows(tmp_path / "run", "eval")] == [6, 9, 12]


def test_a_source_changed_since_the_run_began_is_refused_by_name(tmp_path: Path) -> None:
    text = tiny.corpus(tmp_path / "text.jsonl", 1)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_dict(text))
    train(recipe, tmp_path / "run", stop_after=4)
    text.write_text(text.read_text() + '{"text": "one more line"}\n')
    with pytest.raises(UsageError, match=r"source 'text'.*text\.jsonl"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize("file", ["model.safetensors", "training/optimizer.safetensors", "training/state.json"])
def test_a_damaged_checkpoint_is_refused_aloud_and_the_one_before_is_taken(
    recipe: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "run", stop_after=8)
    path = tmp_path / "run" / "step-000008" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert train(recipe, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "step-000008 is damaged" in said and file in said and "resuming at step 4" in said
    assert (tmp_path / "run" / ".bad-step-000008").is_dir()
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over_by_itself(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", stop_after=4)
    (tmp_path / "run" / "step-000004" / "model.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(AutogError, match="no checkpoint of run 'run' is whole"):
            train(recipe, tmp_path / "run")
    assert train(recipe, tmp_path / "run", fresh=True) == 0


def test_old_checkpoints_go_but_the_best_and_the_newest_stay(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", "checkpoint.every=2", "checkpoint.keep=2", "evaluate.every=2")
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    best = json.loads((tmp_path / "run" / "best_validation.json").read_text())["step"]
    assert kept == sorted({"step-000010", "step-000012", f"step-{best:06d}"})


def test_weights_only_checkpoints_load_but_only_the_last_can_be_resumed(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run", "checkpoint.weights_only=true", "checkpoint.keep=all")
    optimizers = sorted(path.parts[-3] for path in (tmp_path / "run").glob("step-*/training/optimizer.safetensors"))
    assert optimizers == ["step-000012"]
    assert (tmp_path / "run" / "step-000004" / "model.safetensors").is_file()


def test_a_run_of_weights_only_checkpoints_goes_on_from_the_last_whole_one(recipe: Path, tmp_path: Path) -> None:
    sparse = ("checkpoint.weights_only=true", "checkpoint.keep=all")
    train(recipe, tmp_path / "whole", *sparse)
    train(recipe, tmp_path / "run", *sparse, stop_after=6)
    shutil.rmtree(tmp_path / "run" / "step-000006")  # as if killed before it: step 4 has no optimizer
    train(recipe, tmp_path / "run", *sparse)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_stop_on_a_weights_only_step_can_be_resumed(recipe: Path, tmp_path: Path) -> None:
    sparse = ("checkpoint.weights_only=true", "checkpoint.keep=all")
    train(recipe, tmp_path / "whole", *sparse)
    train(recipe, tmp_path / "run", *sparse, stop_after=8)
    train(recipe, tmp_path / "run", *sparse)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    resumed = [row["step"] for row in rows(tmp_path / "run", "events") if row["event"] == "resume"]
    assert resumed == [8]


def test_fresh_never_empties_a_folder_that_is_no_run(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"is no run \(it holds thesis\.txt\)"):
        train(recipe, tmp_path / "mine", fresh=True)
    train(recipe, tmp_path / "run", stop_after=4)
    with pytest.raises(UsageError):
        train(recipe, tmp_path / "run", "data.sources.one.path=/nowhere", fresh=True)
    assert (tmp_path / "run" / "step-000004").is_dir()


def test_the_best_validation_survives_a_resume(recipe: Path, tmp_path: Path) -> None:
    changes = ("optimizer.learning_rate=0.2", "evaluate.every=4", "schedule.type=constant", "schedule.warmup_steps=0")
    train(recipe, tmp_path / "whole", *changes)
    train(recipe, tmp_path / "run", *changes, stop_after=8)
    train(recipe, tmp_path / "run", *changes)
    best = [json.loads((tmp_path / name / "best_validation.json").read_text()) for name in ("whole", "run")]
    assert best[0] == best[1]


def test_a_child_with_a_checkpoint_of_its_own_needs_its_base_no_more(
    recipe: Path, tmp_path: Path, corpora: list[Path]
) -> None:
    train(recipe, tmp_path / "base", stop_after=4)
    content = tiny.recipe_dict(*corpora, train={"steps": 8})
    del content["model"], content["tokenizer"]
    content["init_from"] = str(tmp_path / "base")
    child = tiny.write_recipe(tmp_path / "child.yaml", content)
    train(child, tmp_path / "child", stop_after=4)
    shutil.rmtree(tmp_path / "base")
    assert train(child, tmp_path / "child") == 0


def test_a_model_section_that_the_base_does_not_have_is_refused(
    recipe: Path, tmp_path: Path, corpora: list[Path]
) -> None:
    train(recipe, tmp_path / "base", stop_after=4)
    content = tiny.recipe_dict(*corpora, train={"steps": 8})
    content |= {"init_from": str(tmp_path / "base"), "model": {"model_type": "llama", "hidden_size": 512}}
    with pytest.raises(UsageError, match=r"hidden_size = 512, but init_from brings 32"):
        train(tiny.write_recipe(tmp_path / "child.yaml", content), tmp_path / "child")


def test_a_gradient_that_is_not_finite_is_skipped_and_stops_the_run_with_a_save(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(AutogError, match=r"not finite in \d+ steps in a row.*learning_rate"):
        train(recipe, tmp_path / "run", "optimizer.learning_rate=1e30", "optimizer.grad_clip=null", "train.steps=40")
    events = [row for row in rows(tmp_path / "run", "events") if row["event"] == "skipped step"]
    assert len(events) >= 5
    assert list((tmp_path / "run").glob("step-*/training/optimizer.safetensors"))
    assert all(row["loss"] is None or row["loss"] == row["loss"] for row in rows(tmp_path / "run"))


def test_a_run_continues_from_another_models_weights_and_tokenizer(
    recipe: Path, tmp_path: Path, corpora: list[Path]
) -> None:
    train(recipe, tmp_path / "base")
    content = tiny.recipe_dict(*corpora, train={"steps": 4})
    del content["model"], content["tokenizer"]
    content["init_from"] = str(tmp_path / "base")
    child = tiny.write_recipe(tmp_path / "child.yaml", content)
    assert train(child, tmp_path / "child") == 0
    assert rows(tmp_path / "child")[0]["loss"] < rows(tmp_path / "base")[0]["loss"] - 0.3
    same = (tmp_path / name / "tokenizer" / "tokenizer.json" for name in ("base", "child"))
    assert len({path.read_bytes() for path in same}) == 1
    content["tokenizer"] = {"train": {"vocab_size": 400}}
    with pytest.raises(UsageError, match="none is trained anew"):
        train(tiny.write_recipe(tmp_path / "other.yaml", content), tmp_path / "other")


def test_a_source_held_out_whole_is_refused_if_the_parent_trained_on_it(
    recipe: Path, tmp_path: Path, corpora: list[Path]
) -> None:
    train(recipe, tmp_path / "base", stop_after=4)
    content = tiny.recipe_dict(*corpora, train={"steps": 4})
    del content["model"], content["tokenizer"]
    content["init_from"] = str(tmp_path / "base")
    content["data"]["sources"][1] |= {"weight": 0, "validation": 1.0}
    with pytest.raises(UsageError, match="'two' is held out whole"):
        train(tiny.write_recipe(tmp_path / "child.yaml", content), tmp_path / "child")


def test_a_source_of_weight_zero_is_evaluated_and_not_trained_on(tmp_path: Path, corpora: list[Path]) -> None:
    content = tiny.recipe_dict(*corpora)
    content["data"]["sources"][1] |= {"weight": 0, "validation": 1.0}
    train(tiny.write_recipe(tmp_path / "r.yaml", content), tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["source_tokens"] == {"one": 12 * 256}
    last = rows(tmp_path / "run", "eval")[-1]["loss"]
    assert last["two"] is not None and last["mixed"] == last["one"]


@pytest.mark.parametrize(("mixing", "expected"), [("balanced", {"one": 500, "two": 500}), ("proportional", None)])
def test_shares_can_be_balanced_or_proportional(tmp_path: Path, mixing: str, expected: dict[str, int] | None) -> None:
    texts = [tiny.corpus(tmp_path / "one.jsonl", 0, 100), tiny.corpus(tmp_path / "two.jsonl", 1, 300)]
    content = tiny.recipe_dict(*texts, data={"mixing": mixing, "validation": 0.0})
    assert train(tiny.write_recipe(tmp_path / "r.yaml", content), tmp_path / "run") == 0
    quotas = json.loads((tmp_path / "run" / "sources.json").read_text())["quotas"]
    if expected is None:
        assert quotas["one"] + quotas["two"] == 1000 and 200 < quotas["one"] < 300
    else:
        assert quotas == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"model_type": "llama", "depth": 1, "max_position_embeddings": 16}}, "16 positions"),
        ({"model": {"model_type": "llama", "depth": 1, "vocab_size": 100}}, "vocab_size = 100 is smaller"),
        ({"train": {"micro_batch": 3}}, r"micro_batch = 3 does not divide.*2 or 4"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(
    tmp_path: Path, corpora: list[Path], change: dict, message: str
) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_dict(*corpora, **change))
    with pytest.raises(UsageError, match=message):
        train(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").glob("step-*"))


def test_a_source_without_documents_is_refused_by_name(tmp_path: Path, corpora: list[Path]) -> None:
    empty = tiny.write_jsonl(tmp_path / "empty.jsonl", ["", "  "])
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_dict(corpora[0], empty))
    with pytest.raises(UsageError, match="'empty'"):
        train(recipe, tmp_path / "run")


def test_what_a_bf16_run_writes_is_fp32_and_its_loss_is_close(recipe: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    train(recipe, tmp_path / "full")
    train(recipe, tmp_path / "half", "train.precision=bf16")
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "full"), rel=2e-2)
    tensors = load_file(tmp_path / "half" / "step-000012" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_records_of_a_run_have_the_promised_fields(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(metrics) == {
        "step", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "mfu_causal",
        "data_wait_ms", "memory_gib", "seconds", "source_tokens",
    }  # fmt: skip
    evaluation = rows(tmp_path / "run", "eval")[-1]
    assert set(evaluation["loss"]) == set(evaluation["perplexity"]) == set(evaluation["bits_per_byte"])
    assert evaluation["loss"]["mixed"] == pytest.approx((evaluation["loss"]["one"] + evaluation["loss"]["two"]) / 2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokens"] == 12 * 256 and summary["final_loss"] == rows(tmp_path / "run")[-1]["loss"]
    assert summary["command"] and summary["device"] and summary["peak_memory_gib"] > 0
    samples = rows(tmp_path / "run", "samples")
    assert [row["step"] for row in samples] == [12] and samples[0]["prompt"] == "ka"


@pytest.mark.slow
def test_a_compiled_run_equals_an_eager_one_but_for_rounding(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "eager")
    train(recipe, tmp_path / "compiled", "train.compile=true", stop_after=6)
    train(recipe, tmp_path / "compiled", "train.compile=true")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
    from safetensors import safe_open

    with safe_open(tmp_path / "compiled" / "step-000012" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "_orig_mod" in name]  # noqa: SIM118 - the handle is no mapping


def test_compile_true_without_a_compiler_is_refused_with_the_remedy(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="needs a C compiler"):
        train(recipe, tmp_path / "run", "train.compile=true")


def test_a_tracker_that_accelerate_does_not_know_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--track nonsense"):
        train(recipe, tmp_path / "run", trackers=("nonsense",))
