"""The recipe: everything that a run is, in one frozen object made from YAML. No torch here."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from autog.errors import UsageError
from autog.recipe_file import apply_override, dump_yaml, find_recipe, load_yaml, read_recipe_text

CYCLE_ROWS = 1000  # the mixture keeps its shares exactly in every cycle of this many rows
MINIMUM_EVALUATION_ROWS = 16
LARGEST_COUNT = 10**18
SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_count(value: Any) -> Any:
    """Reads `13.1B`, `512k`, `3e9` or a plain number as a whole number (k, M, B, T are powers of 1,000)."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    match = re.fullmatch(
        r"([-+]?(?:0|[1-9][0-9_]*)?(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?)\s*([kmbt]?)", str(value).strip().lower()
    )
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("is too large to be meant")
    try:
        number = Decimal(match[1]) * SUFFIXES.get(match[2], 1) if match else None
    except InvalidOperation:
        number = None
    if number is None:
        raise ValueError("must be a whole number such as 50000, 512k, 13.1B or 3e9")
    if abs(number) > LARGEST_COUNT:
        raise ValueError("is too large to be meant")
    if number != int(number):
        raise ValueError("must be a whole number")
    return int(number)


def refuse_bool(value: Any) -> Any:
    """Keeps YAML's true and false out of number fields, where pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
Number = Annotated[float, BeforeValidator(refuse_bool), Field(allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, le=1, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]  # pydantic would also take 1, "yes" and "no"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """A part of a recipe: frozen, and every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class About(Section):
    """Free text that travels with the model to its card."""

    family: str | None = None
    tier: str | None = None
    role: str | None = None
    license: str | None = None
    tags: list[str] = []
    why: str | None = None
    intended_use: str | None = None
    limitations: list[str] = []
    links: dict[str, str] = {}
    citation: str | None = None


class TrainedTokenizer(Section):
    """A byte-level BPE of our own, trained on the first training documents of the recipe's sources."""

    vocab_size: Annotated[int, BeforeValidator(parse_count), Field(ge=257)]


class TokenizerChoice(Section):
    """Which tokenizer: exactly one of `tiktoken`, `hf`, `train`."""

    tiktoken: str | None = None
    hf: str | None = None
    train: TrainedTokenizer | None = None
    bos: Switch = False

    @model_validator(mode="after")
    def one_kind(self) -> TokenizerChoice:
        if sum(kind is not None for kind in (self.tiktoken, self.hf, self.train)) != 1:
            raise ValueError("give exactly one of tiktoken: NAME, hf: NAME or DIR, train: {vocab_size: N}")
        return self


class Filter(Section):
    """Which documents of a source are kept; what is left out is counted by reason."""

    min_chars: Count | None = None
    max_chars: Count | None = None
    score_column: str | None = None
    min_score: Number | None = None

    @model_validator(mode="after")
    def whole(self) -> Filter:
        if (self.score_column is None) != (self.min_score is None):
            raise ValueError("score_column and min_score belong together: give both or neither")
        if self.min_chars is not None and self.max_chars is not None and self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars = {self.min_chars} is above max_chars = {self.max_chars}: nothing would be left"
            )
        return self


class Source(Section):
    """Where documents come from: exactly one of hub, path, url, embedded."""

    name: Name
    weight: Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, allow_inf_nan=False)]
    hub: str | None = None
    path: str | None = None
    url: str | list[str] | None = None
    embedded: Literal["python-code", "python-prose", "stories"] | None = None
    config: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | None = None
    split: str = "train"
    revision: str = "main"
    column: str = "text"
    encoding: str = "utf-8"
    clean: Literal["wiki40b"] | None = None
    filter: Filter | None = None
    validation: Share | None = None
    language: str | None = None
    license: str | None = None

    @model_validator(mode="after")
    def one_kind(self) -> Source:
        kinds = [kind for kind in ("hub", "path", "url", "embedded") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of hub, path, url, embedded (here: {', '.join(kinds) or 'none'})")
        only_hub = ("config", "data_dir", "data_files", "split", "revision")
        stray = [key for key in only_hub if key in self.model_fields_set and kinds[0] != "hub"]
        if kinds[0] == "embedded":
            stray += [key for key in ("column", "encoding") if key in self.model_fields_set]
        if kinds[0] == "hub" and "encoding" in self.model_fields_set:
            stray.append("encoding")
        if stray:
            raise ValueError(f"{', '.join(stray)} has no meaning for a source of kind {kinds[0]}: leave it out")
        return self

    @property
    def kind(self) -> str:
        """One of `hub`, `path`, `url`, `embedded`."""
        return next(kind for kind in ("hub", "path", "url", "embedded") if getattr(self, kind) is not None)


class Data(Section):
    """What is read, in which shares, and what is held out."""

    sequence_length: Positive
    mixing: Literal["weights", "balanced", "proportional"] = "weights"
    validation: Share = 0.005
    seed: Count = 0
    patience_minutes: Annotated[float, BeforeValidator(refuse_bool), Field(gt=0)] = 30.0
    sources: list[Source] = Field(min_length=1)

    @model_validator(mode="after")
    def consistent(self) -> Data:
        names = [source.name for source in self.sources]
        if "mixed" in names:
            raise ValueError("a source cannot be called 'mixed': that is the mixture's own loss; rename it")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}: names must differ")
        weights = [source.weight for source in self.sources]
        if not any(weights):
            raise ValueError("all sources have weight 0, so nothing would be trained on: give one a positive weight")
        if self.mixing != "weights" and len({weight for weight in weights if weight}) > 1:
            raise ValueError(
                f"mixing: {self.mixing} takes its shares from elsewhere, so different weights would be ignored: "
                "write weight 1 for each trained source (0 for evaluated only)"
            )
        if self.mixing == "weights":
            shares(dict(zip(names, weights)))
        return self


class Optimizer(Section):
    """AdamW (Loshchilov and Hutter, 2019)."""

    type: Literal["adamw"] = "adamw"
    learning_rate: Annotated[float, BeforeValidator(refuse_bool), Field(gt=0, allow_inf_nan=False)]
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Annotated[float, BeforeValidator(refuse_bool), Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, allow_inf_nan=False)] = 0.1
    grad_clip: Annotated[float, BeforeValidator(refuse_bool), Field(gt=0, allow_inf_nan=False)] | None = 1.0


class Schedule(Section):
    """The learning rate as a function of the step: linear warm-up, then `type`, down to `floor` times the peak."""

    type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Count = 0
    floor: Share | None = None

    @model_validator(mode="after")
    def floor_where_it_means_something(self) -> Schedule:
        if self.type == "constant" and self.floor is not None:
            raise ValueError("floor has no meaning for a constant schedule: leave it out")
        return self

    @property
    def final_share(self) -> float:
        """What is left of the peak learning rate after the last step."""
        if self.type == "constant":
            return 1.0
        return 0.1 if self.floor is None else self.floor


class Train(Section):
    """How long, in which batches, in which precision."""

    steps: Positive | None = None
    tokens: Positive | None = None
    batch_tokens: Positive
    micro_batch: Positive | Literal["auto"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Switch | Literal["auto"] = "auto"
    checkpointing: Switch = False
    log_every: Positive = 10
    seed: Count = 0

    @model_validator(mode="after")
    def one_budget(self) -> Train:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give exactly one of steps and tokens")
        return self


class Evaluate(Section):
    """Validation on fixed rows of each source: every so many steps (0: only after the last), at most so many tokens."""

    every: Count = 500
    tokens: Positive = 1_000_000


class Samples(Section):
    """Texts that the model writes during training; always once after the last step."""

    every: Count = 0
    prompts: list[str] = ["Once upon a time"]
    max_new_tokens: Positive = 120
    temperature: Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, allow_inf_nan=False)] = 0.8
    top_k: Count = 40


class CheckpointPolicy(Section):
    """When checkpoints are written and how many stay; `weights_only` leaves the optimizer out of all but the last."""

    every: Positive = 1000
    keep: Positive | Literal["all"] = 3
    weights_only: Switch = False

    @field_validator("keep")
    @classmethod
    def at_least_two(cls, keep: int | str) -> int | str:
        if keep == 1:
            raise ValueError("must be 2 or more, or all: with one, a crash while saving could leave none")
        return keep


class Recipe(Section):
    """Everything that defines a run."""

    name: Name
    about: About = About()
    init_from: str | None = None
    model: dict[str, Any] = {}
    tokenizer: TokenizerChoice | None = None
    data: Data
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    train: Train
    evaluate: Evaluate = Evaluate()
    samples: Samples = Samples()
    checkpoint: CheckpointPolicy = CheckpointPolicy()

    @model_validator(mode="after")
    def consistent(self) -> Recipe:
        if self.init_from is None:
            if "model_type" not in self.model:
                raise ValueError("model.model_type is missing: say which family (llama, gpt2), or give init_from")
            if self.tokenizer is None:
                raise ValueError("tokenizer is missing: e.g. tokenizer: {tiktoken: gpt2}")
        positions = next((self.model[key] for key in POSITION_KEYS if key in self.model), None)
        if isinstance(positions, int) and self.data.sequence_length > positions:
            raise ValueError(
                f"data.sequence_length = {self.data.sequence_length} is beyond the model's {positions} positions: "
                "shorten it or give the model more positions"
            )
        if self.train.batch_tokens % self.data.sequence_length:
            below, above = neighbours(self.train.batch_tokens, self.data.sequence_length)
            raise ValueError(
                f"train.batch_tokens = {self.train.batch_tokens} is not a multiple of "
                f"data.sequence_length = {self.data.sequence_length}; try {alternatives(below, above)}"
            )
        if self.schedule.warmup_steps >= self.steps and self.schedule.warmup_steps:
            raise ValueError(
                f"schedule.warmup_steps = {self.schedule.warmup_steps} leaves nothing of {self.steps} steps: "
                "warm up for fewer"
            )
        return self

    @classmethod
    def load(cls, name_or_path: str, overrides: list[str] | None = None) -> Recipe:
        """Reads a packaged recipe by name or a YAML file by path, with `a.b=c` overrides; UsageError if it is wrong."""
        path = find_recipe(name_or_path)
        text = read_recipe_text(path)
        content = load_yaml(text, str(path))
        if not isinstance(content, dict):
            raise UsageError(f"{path} is not a recipe: it must be a YAML mapping with keys such as model, data, train")
        for override in overrides or []:
            apply_override(content, override)
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], origin: str) -> Recipe:
        """Validates; UsageError names the field, the value and the remedy."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UsageError(f"{origin}: {describe(error, content)}") from None

    def to_yaml(self) -> str:
        """The recipe as YAML that loads back to an equal recipe."""
        content = self.model_dump(mode="json", exclude_unset=True)
        content["name"] = self.name
        return dump_yaml(content)

    def replace(self, **sections: Any) -> Recipe:
        """A copy with whole top-level fields replaced, validated again."""
        content = self.model_dump(exclude_unset=True)
        content.update(sections)
        return Recipe.from_dict(content, self.name)

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step over all processes."""
        return self.train.batch_tokens // self.data.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None
        return math.ceil(self.train.tokens / self.train.batch_tokens)

    @property
    def tokens(self) -> int:
        """Tokens trained on in the whole run."""
        return self.steps * self.train.batch_tokens

    @property
    def rows(self) -> int:
        """Rows trained on in the whole run."""
        return self.steps * self.rows_per_step

    @property
    def trained_sources(self) -> list[Source]:
        """The sources with a positive weight."""
        return [source for source in self.data.sources if source.weight > 0]

    def validation_share(self, source: Source) -> float:
        """The share of a source's documents that is held out."""
        return self.data.validation if source.validation is None else source.validation

    def accumulation(self, micro_batch: int, processes: int) -> int:
        """Micro-batches per process and step; UsageError with the nearest values if the step does not divide."""
        rows, per_pass = self.rows_per_step, micro_batch * processes
        if rows % per_pass == 0:
            return rows // per_pass
        if rows % processes:
            below, above = neighbours(rows, processes)
            length = self.data.sequence_length
            options = " or ".join(f"{value * length}" for value in (below, above) if value)
            raise UsageError(
                f"train.batch_tokens = {self.train.batch_tokens} is {rows} rows, which {processes} processes "
                f"cannot share; try train.batch_tokens = {options}"
            )
        divisors = [size for size in range(1, rows // processes + 1) if (rows // processes) % size == 0]
        nearest = sorted(sorted(divisors, key=lambda size: abs(size - micro_batch))[:2])
        raise UsageError(
            f"train.micro_batch = {micro_batch} does not divide the {rows // processes} rows that each of {processes} "
            f"process(es) takes per step; try train.micro_batch = {' or '.join(map(str, nearest))}"
        )

    def evaluation_rows(self, source: Source, planned_rows: int) -> int:
        """Validation rows of a source: at most evaluate.tokens and the held-out share of its plan, at least 16."""
        length = self.data.sequence_length
        if self.validation_share(source) == 0:
            return 0
        wanted = self.evaluate.tokens
        if source.weight > 0:
            wanted = min(wanted, int(self.validation_share(source) * planned_rows * length))
        return max(MINIMUM_EVALUATION_ROWS, wanted // length)


POSITION_KEYS = ("max_position_embeddings", "n_positions")
# pydantic's kinds of complaint in the words of a recipe; what is not here keeps pydantic's own.
NUMBER = "must be a finite number such as 0.1 or 3e-4"
MAPPING, LIST, TEXT = "must be a mapping of keys to values", "must be a list", "must be text"
SWITCH, NAME = "must be true or false", "must be letters, digits, '.', '_' or '-', 64 at most, a letter or digit first"
PHRASES = {
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), NUMBER),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), MAPPING),
    **dict.fromkeys(("list_type", "tuple_type"), LIST),
    **dict.fromkeys(("bool_type", "bool_parsing"), SWITCH),
    "string_type": TEXT,
    "string_pattern_mismatch": NAME,
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "too_short": "needs {min_length} or more",
    "too_long": "takes {max_length} at most",
}
# What a resumed run may change, said aloud; everything else must match.
FREE_ON_RESUME = (
    "name", "about", "train.micro_batch", "train.compile", "train.checkpointing", "train.log_every",
    "data.patience_minutes", "evaluate", "samples", "checkpoint",
)  # fmt: skip


def shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Rows per cycle of 1,000 for each weight, by largest remainder; ValueError if a positive weight gets none."""
    total = sum(weights.values())
    exact = {name: weight / total * CYCLE_ROWS for name, weight in weights.items()}
    quotas = {name: int(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: quotas[name] - exact[name])
    for name in by_remainder[: CYCLE_ROWS - sum(quotas.values())]:
        quotas[name] += 1
    for name, weight in weights.items():
        if weight > 0 and quotas[name] == 0:
            raise ValueError(
                f"weight {weight:g} of source {name!r} is less than one row in {CYCLE_ROWS}; "
                f"the smallest that counts here is {total / CYCLE_ROWS:g} (or 0: evaluated only)"
            )
    return quotas


def neighbours(value: int, divisor: int) -> tuple[int, int]:
    """The multiples of `divisor` just below and above `value`."""
    below = value // divisor * divisor
    return below, below + divisor


def alternatives(*values: int) -> str:
    """The values above zero as words."""
    return " or ".join(str(value) for value in values if value > 0)


def describe(error: ValidationError, content: Mapping[str, Any]) -> str:
    """The first complaint of pydantic in a sentence: field, value, what is wrong, nearest known key."""
    complaints: list[Any] = list(error.errors(include_url=False))
    first = place(complaints[0], content)
    # A union complains once per member: the one that reached deepest into the value knows best what is wrong with it.
    same_field = [complaint for complaint in complaints if place(complaint, content)[: len(first)] == first]
    complaint = max(same_field, key=lambda complaint: len(place(complaint, content)))
    location = place(complaint, content)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    where = name_the_source(where, location, content)
    if complaint["type"] == "extra_forbidden":
        known = known_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: there is no such key; {remedy}"
    if complaint["type"] == "missing":
        return f"{where} is missing"
    phrases = [phrase(other) for other in same_field if place(other, content) == location]
    message = ", or ".join(dict.fromkeys([phrases[0], *(other.removeprefix("must be ") for other in phrases[1:])]))
    if isinstance(complaint["input"], Mapping) or not where:
        return f"{where}: {message}" if where else message
    quotable = complaint["type"] == "string_type" and isinstance(complaint["input"], bool | int | float)
    remedy = "; put it in quotes if it is meant as text" if quotable else ""
    return f"{where} = {shown(complaint['input'])}: {message}{remedy}"


def place(complaint: Mapping[str, Any], content: Any) -> list[Any]:
    """The keys and numbers that lead to the fault; pydantic puts names of its own types among them."""
    here, kept = content, []
    for part in complaint["loc"]:
        inside = isinstance(here, Mapping) and part in here
        if inside or (isinstance(here, list) and isinstance(part, int) and part < len(here)):
            kept.append(part)
            here = here[part]
    if complaint["type"] == "missing":
        kept.append(complaint["loc"][-1])
    return kept


def phrase(complaint: Mapping[str, Any]) -> str:
    """What is wrong, in words of ours."""
    known = PHRASES.get(complaint["type"])
    if known is None:
        return complaint["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return known.format(**{key: str(value) for key, value in complaint.get("ctx", {}).items()})


def shown(value: Any) -> str:
    """A value as it could stand in the recipe, not too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def name_the_source(where: str, location: list[Any], content: Mapping[str, Any]) -> str:
    """Adds a source's name to its number."""
    if len(location) < 3 or location[:2] != ["data", "sources"]:
        return where
    try:
        return f"{where} (source {content['data']['sources'][location[2]]['name']!r})"
    except (KeyError, TypeError, IndexError):
        return where


def known_keys(location: list[Any]) -> list[str]:
    """The field names of the section at a place in the recipe."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is None:
            return []
    return list(section.model_fields)


def differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ, leaves only."""
    first = flatten(ours.model_dump(mode="json"))
    second = flatten(theirs.model_dump(mode="json"))
    return [key for key in {**first, **second} if first.get(key) != second.get(key)]


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one level of dotted keys."""
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list) and content and isinstance(content[0], dict):
        items = [(item.get("name", number), item) for number, item in enumerate(content)]
    else:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def is_free(key: str) -> bool:
    """Whether a resumed run may change this dotted key."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
