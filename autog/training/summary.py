"""The end of a run: its summary as JSON, and the last lines on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autog.plan import parameters
from autog.runs import checkpoints, read_json, read_jsonl
from autog.training.display import clock, short_count

if TYPE_CHECKING:
    from autog.training.loop import Trainer


def summarise(trainer: Trainer) -> dict[str, Any]:
    """The run in one JSON object: what was spent, how fast, how good."""
    recipe, totals, run = trainer.recipe, trainer.telemetry.totals, trainer.run
    trainer.count_wall_time()
    metrics = read_jsonl(run.directory / "metrics.jsonl")
    evaluations = read_jsonl(run.directory / "eval.jsonl")
    steps, batch = trainer.step, recipe.train.batch_tokens
    last = metrics[-1] if metrics else {}
    warm = totals.warm_steps * batch / totals.warm_seconds if totals.warm_seconds else None
    rows = steps * recipe.rows_per_step
    return {
        "run": run.name,
        "parameters": parameters(trainer.session.config.to_dict()),
        "step": steps,
        "steps": recipe.steps,
        "tokens": steps * batch,
        "source_tokens": trainer.mixture.tokens_used(rows),
        "epochs": trainer.mixture.epochs(rows),
        "wall_clock_seconds": round(totals.wall_seconds, 1),
        "train_seconds": round(totals.train_seconds, 1),
        "command": read_json(run.directory / "environment.json")["command"],
        "tokens_per_second": round(steps * batch / totals.train_seconds, 1) if totals.train_seconds else None,
        "tokens_per_second_after_warmup": None if warm is None else round(warm, 1),
        "final_step_ms": round(batch / last["tokens_per_second"] * 1e3, 2) if last else None,
        "mean_step_ms": round(totals.train_seconds / steps * 1e3, 2) if steps else None,
        "mfu": last.get("mfu"),
        "mfu_causal": last.get("mfu_causal"),
        "device": trainer.facts.name,
        "device_memory_gib": round(trainer.facts.memory_gib, 2),
        "peak_memory_gib": totals.peak_memory_gib,
        "energy_joules": totals.energy_joules,
        "precision": trainer.precision,
        "processes": trainer.world.size,
        "restarts": totals.restarts,
        "skipped_steps": totals.skipped_steps,
        "final_loss": last.get("loss"),
        "best_validation": trainer.best,
        "last_validation": evaluations[-1] if evaluations else None,
        "unigram_entropy": trainer.validation.unigram_entropy(),
    }


def closing_lines(trainer: Trainer, summary: dict[str, Any]) -> list[str]:
    """The end of a run as a person wants to read it, and what to do next."""
    run, checkpoint = trainer.run, checkpoints(trainer.run.directory)[:1]
    where = checkpoint[0].path if checkpoint else None
    speed = summary["tokens_per_second"]
    lines = [
        f"{'finished' if trainer.step == trainer.recipe.steps else 'stopped'} at step {trainer.step:,}: "
        f"{short_count(summary['tokens'])} tokens in {clock(summary['wall_clock_seconds'])}"
        + (f", {short_count(speed)} tok/s" if speed else "")
    ]
    if where is None:
        return lines
    if summary["last_validation"] and summary["unigram_entropy"]:
        mixed, entropy = summary["last_validation"]["loss"]["mixed"], summary["unigram_entropy"]
        lines.append(
            f"validation loss {mixed:.3f}; {entropy:.3f} is what knowing only each token's frequency would give"
        )
    if trainer.step < trainer.recipe.steps:
        lines.append(f"go on with the same command; the last checkpoint is {where}")
    else:
        lines.append(f"the model is {where}: any program that reads Hugging Face directories can load it")
        lines.append(f"records: {run.directory}/summary.json, metrics.jsonl, eval.jsonl, samples.jsonl")
    return lines
