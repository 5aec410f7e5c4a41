"""What the verbs `pretrain` and `recipes` do before the loop takes over."""

from __future__ import annotations

import json
import os
import sys

from autog.errors import UsageError
from autog.launch import Launch, execute, plan_launch, refuse_native_windows, under_launcher
from autog.recipe import Recipe
from autog.recipe_file import RECIPES, load_yaml, packaged_recipes


def run_pretrain(
    name: str | None,
    gpus: int | None,
    accelerate_config: str | None,
    p2p: str,
    overrides: list[str],
    run_name: str | None,
    fresh: bool,
    stop_after: int | None,
    cpu: bool,
    trackers: list[str],
    print_launch: bool,
) -> int:
    """Trains in this process, or becomes the launcher of several; gives the exit code."""
    refuse_native_windows()
    if name is None:
        list_recipes(as_json=False)
        return 0
    if p2p not in ("auto", "on", "off"):
        raise UsageError(f"--p2p {p2p}: must be auto, on or off")
    recipe = Recipe.load(name, overrides)
    launch = None if under_launcher() else plan_launch(sys.argv[1:], gpus, accelerate_config, p2p)
    if print_launch:
        print(launch.as_text() if launch else f"{sys.executable} -m autog {' '.join(sys.argv[1:])}")
        return 0
    if launch is not None:
        refuse_missing_cards(launch)
        execute(launch)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    if gpus is None and accelerate_config is None and not under_launcher() and not cpu:
        say_idle_cards()

    from autog.runs import Run
    from autog.training.loop import Options, pretrain

    run = Run.named(run_name or recipe.name)
    return pretrain(recipe, run, Options(fresh, stop_after, cpu, tuple(trackers)))


def refuse_missing_cards(launch: Launch) -> None:
    """UsageError if more processes are wanted on this machine than it has GPUs."""
    import torch

    cards = torch.cuda.device_count()
    if not launch.on_cpu and launch.machines == 1 and launch.processes > cards:
        raise UsageError(
            f"{launch.processes} GPUs are wanted and torch sees {cards}: use --gpus {max(1, cards)}, or "
            "--accelerate-config cpu_pair to try two processes on the CPU"
        )


def say_idle_cards() -> None:
    """Says that --gpus is 1 unless given, where more cards are in the machine."""
    import torch

    cards = torch.cuda.device_count()
    if cards > 1:
        print(f"training on one of {cards} GPUs; --gpus {cards} takes them all")


def list_recipes(as_json: bool) -> None:
    """The packaged recipes with their reasons."""
    rows = []
    for name in packaged_recipes():
        path = RECIPES / f"{name}.yaml"
        about = load_yaml(path.read_text(encoding="utf-8"), str(path)).get("about") or {}
        rows.append({"name": name, "why": about.get("why") or ""})
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['why']}")
    print(f"\nautog pretrain {rows[0]['name']}   starts one; a path to a YAML file of your own works the same")
