"""The verbs of `autog`: each body is one call; what is heavy is imported inside it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from autog.errors import AutogError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From nothing to a small language model that others can trust and use.",
)
data_app = typer.Typer(no_args_is_help=True, help="Token stores: fill them, look into them, remove unused ones.")
app.add_typer(data_app, name="data")

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe field, e.g. train.steps=200.")]  # fmt: skip # noqa: E501
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def pretrain(
    recipe: Annotated[
        str | None, typer.Argument(help="A packaged recipe's name or a YAML file; none lists them.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Processes on this machine, one per GPU.")] = None,
    accelerate_config: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="How processes are launched.")
    ] = None,
    p2p: Annotated[str, typer.Option(metavar="auto|on|off", help="NCCL's direct traffic between GPUs.")] = "auto",
    set_: Set = None,
    run: Annotated[str | None, typer.Option(metavar="NAME|PATH", help="The run's name; default: the recipe's.")] = None,
    fresh: Annotated[bool, typer.Option(help="Begin the run anew; removes what it holds.")] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Save and stop after this many steps.")
    ] = None,
    cpu: Annotated[bool, typer.Option(help="Train on the CPU even if there is a GPU.")] = False,
    track: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also log to a tracker that Accelerate knows.")
    ] = None,
    print_launch: Annotated[bool, typer.Option(help="Print the launch command instead of running it.")] = False,
) -> None:
    """Train from scratch by a recipe; repeat the command to resume."""
    from autog.commands import run_pretrain

    raise typer.Exit(
        run_pretrain(
            recipe, gpus, accelerate_config, p2p, set_ or [], run, fresh, stop_after, cpu, track or [], print_launch
        )
    )


@app.command()
def recipes(json: Json = False) -> None:
    """List the packaged recipes."""
    from autog.commands import list_recipes

    list_recipes(json)


@app.command()
def doctor(json: Json = False) -> None:
    """Examine this machine: versions, devices, compiler, room, and whether GPUs can talk to each other."""
    from autog.doctor import report

    report(json)


@data_app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe's name or a YAML file.")],
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Training tokens in all, e.g. 100M; default: the recipe's.")
    ] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Fill the token stores of a recipe without training."""
    from autog.data.commands import build

    build(recipe, tokens, set_ or [], json)


@data_app.command()
def stats(json: Json = False) -> None:
    """Show every token store: source, tokens, documents, what was left out."""
    from autog.data.commands import stats

    stats(json)


@data_app.command()
def sample(
    store: Annotated[str, typer.Argument(help="A store's key (or its beginning), as `autog data stats` shows it.")],
    count: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 3,
    validation: Annotated[bool, typer.Option(help="Take them from the validation side.")] = False,
    json: Json = False,
) -> None:
    """Show documents of a token store as text."""
    from autog.data.commands import sample

    sample(store, count, validation, json)


@data_app.command()
def prune(
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False, json: Json = False
) -> None:
    """Remove token stores that no run uses."""
    from autog.data.commands import prune

    prune(dry_run, json)


def main() -> None:
    """Runs a verb; errors are one sentence, exit codes 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    # Read when torch is loaded. OpenMP's threads spin while they wait, which beside a filler on two cores costs a step
    # half its time; huge pages spare a step on the CPU most of its page faults (docs/performance.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        app()
    except AutogError as error:
        print(f"autog: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"autog: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("autog: interrupted", file=sys.stderr)
        sys.exit(130)
