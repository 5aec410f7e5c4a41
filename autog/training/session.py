"""Opening a run: begun anew or taken up where it stopped, with everything about it decided and on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from autog.data.pin import choose_tokenizer, note_user, pin_sources, refuse_changes, resolve_all
from autog.data.sources import absolute, identity
from autog.data.store import store_directory
from autog.errors import AutogError, UsageError
from autog.models import FAMILIES, make_config, read_config
from autog.recipe import Recipe, differences, is_free
from autog.runs import Checkpoint, Run, checkpoints, read_jsonl, to_json
from autog.tokens import Tokenizer
from autog.training.checkpoint import newest_verified
from autog.training.world import World

Say = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """What every process knows when training can begin."""

    recipe: Recipe
    pinned: dict[str, Any]
    tokenizer: Tokenizer
    config: PretrainedConfig
    init: Path | None
    checkpoint: Checkpoint | None
    begun: bool  # by this call


def open_session(recipe: Recipe, run: Run, fresh: bool, world: World, say: Say) -> Session:
    """Begins or resumes a run; the main process decides and writes, the others read what it wrote."""
    resumed: Checkpoint | None = None
    begun = False
    with world.main_first() as main:
        if main:
            run.lock()
            if fresh:
                refuse_strangers(run)
            begun = fresh or not run.started
            if begun:
                begin(recipe, run, say)
            resumed = resume(recipe, run, say)
    resumed = world.share(resumed)
    written = Recipe.load(str(run.directory / "recipe.yaml"))
    tokenizer = Tokenizer.load(run.directory / "tokenizer")
    init = initial_directory(written.init_from) if written.init_from and resumed is None else None
    source = resumed.path if resumed else init
    config = (
        read_config(source) if source else make_config(written.model, tokenizer.vocab_size, sequence_length(written))
    )
    set_special_tokens(config, tokenizer)
    return Session(written, run.read("sources.json"), tokenizer, config, init, resumed, begun)


def refuse_strangers(run: Run) -> None:
    """UsageError if --fresh would empty a folder that was never a run."""
    others = [path.name for path in run.directory.iterdir() if path.name != "lock"]
    if others and not run.started:
        raise UsageError(f"--fresh: {run.directory} is no run (it holds {others[0]}): choose another --run")


def sequence_length(recipe: Recipe) -> int:
    """Tokens per row."""
    return recipe.data.sequence_length


def resolved_fields(config: PretrainedConfig) -> dict[str, Any]:
    """The model section that a config stands for, complete, so that a later default cannot change a run."""
    family = FAMILIES[config.model_type]
    names = [*family.fields, *(name for name, allowed in family.fixed.items() if len(allowed) > 1)]
    values = {name: getattr(config, name) for name in sorted(names) if getattr(config, name, None) is not None}
    return {"model_type": config.model_type, **values}


def set_special_tokens(config: PretrainedConfig, tokenizer: Tokenizer) -> None:
    """Tells the model's config which ids begin, end and pad."""
    config.eos_token_id = config.pad_token_id = tokenizer.end_id
    config.bos_token_id = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.end_id


def begin(recipe: Recipe, run: Run, say: Say) -> None:
    """Decides everything about a new run and writes it down, the recipe last: from then on the run has begun."""

    def tell(kind: str, facts: dict[str, Any]) -> None:
        if kind == "retry":
            say(f"reading again (try {facts.get('attempt')}): {facts.get('error')}")

    revisions = resolve_all(recipe, tell)
    if recipe.init_from:
        init = initial_directory(recipe.init_from)
        tokenizer = tokenizer_of(init, recipe)
        refuse_unfit(recipe, read_config(init), tokenizer)
        refuse_seen_evaluation(recipe, init)
        resolved = with_absolute_paths(recipe)
    else:
        if recipe.tokenizer is not None and recipe.tokenizer.train is not None:
            say(f"training a tokenizer of {recipe.tokenizer.train.vocab_size:,} tokens on the sources' first texts")
        tokenizer = choose_tokenizer(recipe, revisions, tell)
        config = make_config(recipe.model, tokenizer.vocab_size, sequence_length(recipe))
        resolved = with_absolute_paths(recipe.replace(model=resolved_fields(config)))
    if run.started:
        run.clear()  # --fresh: only now, when this recipe can begin
    directory = run.directory / "tokenizer"
    directory.mkdir(exist_ok=True)
    tokenizer.save(directory)
    pinned = pin_sources(recipe, revisions, tokenizer)
    for item in pinned["sources"].values():
        note_user(store_directory(item["key"]), run.directory)
    run.write("sources.json", pinned)
    run.write("recipe.yaml", resolved.to_yaml())


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with local sources named from the root, so that a resume from another folder finds them."""
    content = recipe.model_dump(exclude_unset=True)
    for source in content["data"]["sources"]:
        if source.get("path") is not None:
            source["path"] = str(absolute(source["path"]))
    return Recipe.from_dict(content, recipe.name)


def resume(recipe: Recipe, run: Run, say: Say) -> Checkpoint | None:
    """Checks a recipe against the run's own, takes over what may change, finds the checkpoint to go on from."""
    pinned = Recipe.load(str(run.directory / "recipe.yaml"))
    merged = merge(recipe, pinned, run, say)
    if merged != pinned:
        run.write("recipe.yaml", merged.to_yaml())
    refuse_changes(merged, run.read("sources.json"))
    for leftover in run.leftovers():
        shutil.rmtree(leftover, ignore_errors=True)
    checkpoint, refused = newest_verified(run)
    for sentence in refused:
        say(sentence)
    if checkpoint is None and any(run.directory.glob(".bad-step-*")):
        raise AutogError(
            f"no checkpoint of run {run.name!r} is whole (damaged ones are {run.directory}/.bad-step-*): restore one, "
            "or begin again with --fresh"
        )
    step = checkpoint.step if checkpoint else 0
    discard_after(run, step)
    run.records.cut(step)
    for sentence in refused:
        run.records.append("events.jsonl", {"step": step, "event": "refused checkpoint", "why": sentence})
    repair_best(run, step)
    return checkpoint


def discard_after(run: Run, step: int) -> None:
    """Removes checkpoints past the step that a run goes on from: they hold no optimizer and are written again."""
    for later in checkpoints(run.directory):
        if later.step > step:
            shutil.rmtree(later.path.rename(later.path.with_name(f".trash-{later.path.name}")))


def repair_best(run: Run, step: int) -> None:
    """Computes the best validation anew from the evaluations that remain after a cut."""
    rows = [row for row in read_jsonl(run.directory / "eval.jsonl") if row["loss"].get("mixed") is not None]
    path = run.directory / "best_validation.json"
    if rows:
        run.write("best_validation.json", min(rows, key=lambda row: (row["loss"]["mixed"], row["step"])))
    elif path.exists():
        path.unlink()


def merge(recipe: Recipe, pinned: Recipe, run: Run, say: Say) -> Recipe:
    """The run's own recipe with the given one's free fields; UsageError lists every other difference."""
    given = recipe
    if not recipe.init_from:
        tokenizer = Tokenizer.load(run.directory / "tokenizer")
        config = make_config(recipe.model, tokenizer.vocab_size, sequence_length(recipe))
        given = recipe.replace(model=resolved_fields(config))
    given = with_absolute_paths(given)
    changed = differences(given, pinned)
    fixed = [key for key in changed if not is_free(key)]
    if fixed:
        shown = ", ".join(fixed[:8]) + (f" and {len(fixed) - 8} more" if len(fixed) > 8 else "")
        raise UsageError(
            f"run {run.name!r} was begun with another recipe (different: {shown}): take those back, or start a new run "
            "with --run NAME, or this one anew with --fresh"
        )
    for key in changed:
        if key != "name":
            say(f"changed since the run began: {key}")
    return given.replace(name=pinned.name)


# -- starting from somebody's weights ---------------------------------------------------------------------------------


def initial_directory(name: str) -> Path:
    """The Hugging Face directory that `init_from` means: a run, a checkpoint, a folder, or a hub repository."""
    path = Path(name).expanduser()
    for candidate in (path, Path("runs") / name):
        if (candidate / "config.json").is_file():
            return candidate
        if (candidate / "recipe.yaml").is_file():
            checkpoint = Run(candidate).newest_whole()
            if checkpoint is None:
                raise UsageError(f"init_from = {name}: the run has no whole checkpoint yet")
            return checkpoint.path
    return download_model(name)


def download_model(name: str) -> Path:
    """A hub repository's weights, config and tokenizer in the local cache; UsageError says why not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except GatedRepoError:
        reason = f"it is gated: accept its terms at https://huggingface.co/{name} and set HF_TOKEN"
    except HFValidationError:
        reason = "no folder of that name holds a config.json, and it is no hub id either"
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = f"neither a folder with a config.json nor to be had from the hub ({type(error).__name__})"
    raise UsageError(f"init_from = {name}: {reason}")


def tokenizer_of(directory: Path, recipe: Recipe) -> Tokenizer:
    """The tokenizer that lies with the weights; UsageError if the recipe names another."""
    tokenizer = Tokenizer.load(directory)
    wanted = recipe.tokenizer
    if wanted is None:
        return tokenizer
    if wanted.train is not None:
        if wanted.train.vocab_size != tokenizer.vocab_size:
            raise UsageError(
                f"tokenizer.train.vocab_size = {wanted.train.vocab_size}, but init_from brings a tokenizer of "
                f"{tokenizer.vocab_size} and none is trained anew: leave the tokenizer section out"
            )
        return tokenizer
    from autog.tokens import choose

    if choose(wanted).slow.get_vocab() != tokenizer.slow.get_vocab():
        raise UsageError("the tokenizer section names another tokenizer than init_from brings: leave the section out")
    return tokenizer


def refuse_unfit(recipe: Recipe, config: PretrainedConfig, tokenizer: Tokenizer) -> None:
    """UsageError if the recipe asks for what the weights that it starts from are not."""
    for name, wanted in recipe.model.items():
        if getattr(config, name, None) != wanted:
            raise UsageError(
                f"model.{name} = {wanted!r}, but init_from brings {getattr(config, name, None)!r}: leave the model "
                "section out"
            )
    if sequence_length(recipe) > config.max_position_embeddings:
        raise UsageError(
            f"data.sequence_length = {sequence_length(recipe)} is beyond the {config.max_position_embeddings} "
            "positions that init_from brings: shorten it"
        )
    if config.vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"init_from = {recipe.init_from}: its tokenizer has {tokenizer.vocab_size} tokens and its model only "
            f"{config.vocab_size}: they do not belong together"
        )


def refuse_seen_evaluation(recipe: Recipe, init: Path) -> None:
    """UsageError if a source that is wholly held out was trained on by the weights' lineage, as far as it is there."""
    seen: set[str] = set()
    file: Path | None = init / "training" / "recipe.yaml"
    while file is not None and file.is_file():
        parent = Recipe.load(str(file))
        seen |= {to_json(identity(source)) for source in parent.trained_sources}
        file = initial_directory(parent.init_from) / "training" / "recipe.yaml" if parent.init_from else None
    for source in recipe.data.sources:
        if recipe.validation_share(source) == 1 and to_json(identity(source)) in seen:
            raise UsageError(
                f"source {source.name!r} is held out whole (validation: 1.0), but {recipe.init_from} was trained "
                "on it: its loss would not be one on unseen text"
            )
