"""What a recipe promises: mistakes are told in one sentence with the remedy, and numbers come out exactly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import autog, recipe_dict, write_recipe

from autog.errors import UsageError
from autog.recipe import Recipe, differences, is_free, shares
from autog.recipe_file import dump_yaml, load_yaml, packaged_recipes

TWO = [{"name": "web", "weight": 0.6, "path": "web/*.jsonl"}, {"name": "wiki", "weight": 0.4, "path": "wiki.jsonl"}]


def sources(*changes: dict[str, Any]) -> dict[str, Any]:
    """A data section's sources: the usual two, each with its changes; None removes a key."""
    made = [{**source, **change} for source, change in zip(TWO, [*changes, {}, {}])]
    return {"sources": [{key: value for key, value in source.items() if value is not None} for source in made]}


def text_of(**changes: Any) -> str:
    return dump_yaml(recipe_dict(**{"data": sources(), **changes}))


def load(text: str, tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(str(path), list(overrides))


# What is changed in a good recipe -> words that the sentence must hold: the field, the value, the remedy.
SECTIONS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("unknown section", {"optimiser": {}}, ["optimiser", "did you mean 'optimizer'"]),
    ("unknown key, near miss", {"train": {"batch_token": 256}}, ["train.batch_token", "did you mean 'batch_tokens'"]),
    ("unknown key, far off", {"train": {"zzz": 1}}, ["train.zzz", "no such key", "batch_tokens"]),
    ("unknown key in a list", {"data": sources({"pth": "x"})}, ["data.sources[0].pth", "'web'", "'path'"]),
    ("unknown key of a filter", {"data": sources({"filter": {"min_char": 3}})}, ["filter.min_char", "'min_chars'"]),
    ("learning rate is no key", {"optimizer": {"lr": 0.1}}, ["optimizer.lr", "learning_rate"]),
    ("text for a number", {"optimizer": {"learning_rate": "fast"}}, ["optimizer.learning_rate", "fast", "number"]),
    ("text for a count", {"train": {"batch_tokens": "lots"}}, ["train.batch_tokens", "lots", "512k"]),
    ("half a token", {"train": {"batch_tokens": "0.5"}}, ["train.batch_tokens", "0.5", "whole number"]),
    ("a float for a count", {"train": {"log_every": 2.5}}, ["train.log_every", "2.5", "whole number"]),
    ("true for a number", {"train": {"log_every": True}}, ["train.log_every", "true", "number"]),
    ("null for a number", {"train": {"batch_tokens": None}}, ["train.batch_tokens", "null", "number"]),
    ("list for a number", {"train": {"batch_tokens": [1, 2]}}, ["train.batch_tokens", "[1, 2]", "number"]),
    ("mapping for a number", {"train": {"batch_tokens": {"a": 1}}}, ["train.batch_tokens", "number"]),
    ("infinity", {"optimizer": {"learning_rate": float("inf")}}, ["optimizer.learning_rate", "inf", "finite"]),
    ("negative learning rate", {"optimizer": {"learning_rate": -1e-3}}, ["learning_rate", "-0.001", "above 0"]),
    ("number for a section", {"train": 5}, ["train", "5", "mapping"]),
    ("null for a section", {"train": None}, ["train", "null", "mapping"]),
    ("list for a section", {"train": [1]}, ["train", "mapping"]),
    ("text for a list", {"data": {"sources": "web"}}, ["data.sources", "web", "list"]),
    ("no sources", {"data": {"sources": []}}, ["data.sources", "1 or more"]),
    ("text for a source", {"data": {"sources": ["web"]}}, ["data.sources[0]", "web", "mapping"]),
    ("one beta", {"optimizer": {"betas": [0.9]}}, ["optimizer.betas[1]", "missing"]),
    ("three betas", {"optimizer": {"betas": [0.9, 0.9, 0.9]}}, ["optimizer.betas", "2"]),
    ("beta beyond one", {"optimizer": {"betas": [0.9, 1.5]}}, ["optimizer.betas[1]", "1.5", "1 or less"]),
    ("wrong precision", {"train": {"precision": "fp16"}}, ["train.precision", "fp16", "'bf16'"]),
    ("wrong schedule", {"schedule": {"type": "cosin"}}, ["schedule.type", "cosin", "'cosine'"]),
    ("yes for a switch", {"train": {"compile": "yes"}}, ["train.compile", "yes", "true", "false", "auto"]),
    ("no for a switch", {"train": {"checkpointing": "no"}}, ["train.checkpointing", "no", "true", "false"]),
    ("micro_batch words", {"train": {"micro_batch": "big"}}, ["train.micro_batch", "big", "number", "auto"]),
    ("micro_batch zero", {"train": {"micro_batch": 0}}, ["train.micro_batch", "0", "auto"]),
    ("keep one", {"checkpoint": {"keep": 1}}, ["checkpoint.keep", "1", "2 or more"]),
    ("keep words", {"checkpoint": {"keep": "most"}}, ["checkpoint.keep", "most", "all"]),
    ("steps and tokens", {"train": {"tokens": 1000}}, ["train", "exactly one of steps and tokens"]),
    ("neither steps nor tokens", {"train": {"steps": None}}, ["train", "exactly one of steps and tokens"]),
    ("zero steps", {"train": {"steps": 0}}, ["train.steps", "0", "1 or more"]),
    ("negative steps", {"train": {"steps": -5}}, ["train.steps", "-5", "1 or more"]),
    ("batch between", {"train": {"batch_tokens": 250}}, ["train.batch_tokens", "250", "224 or 256"]),
    ("batch too small", {"train": {"batch_tokens": 20}}, ["train.batch_tokens", "20", "try 32"]),
    ("warm-up too long", {"schedule": {"warmup_steps": 12}}, ["schedule.warmup_steps", "12", "fewer"]),
    ("floor without decay", {"schedule": {"type": "constant", "floor": 0.1}}, ["schedule", "floor", "leave it out"]),
    ("negative weight", {"data": sources({"weight": -0.1})}, ["data.sources[0].weight", "'web'", "-0.1", "0"]),
    ("NaN weight", {"data": sources({"weight": float("nan")})}, ["data.sources[0].weight", "'web'", "nan", "finite"]),
    ("all weights zero", {"data": sources({"weight": 0}, {"weight": 0})}, ["data", "weight 0", "positive weight"]),
    ("text weight", {"data": sources({"weight": "half"})}, ["data.sources[0].weight", "half", "number"]),
    ("no weight", {"data": sources({"weight": None})}, ["data.sources[0].weight", "'web'", "missing"]),
    ("no name", {"data": sources({}, {"name": None})}, ["data.sources[1].name", "missing"]),
    ("a name with a slash", {"data": sources({"name": "a/b"})}, ["data.sources[0].name", "a/b", "letters"]),
    ("one name twice", {"data": sources({"name": "wiki"})}, ["data", "'wiki'", "differ"]),
    ("two kinds", {"data": sources({"hub": "a/b"})}, ["data.sources[0]", "'web'", "exactly one", "hub, path"]),
    ("no kind", {"data": sources({"path": None})}, ["data.sources[0]", "'web'", "exactly one", "none"]),
    ("hub keys on a path", {"data": sources({"revision": "v1"})}, ["data.sources[0]", "revision", "leave it out"]),
    ("split of a path", {"data": sources({"split": "test"})}, ["data.sources[0]", "split", "path"]),
    ("unknown embedded text", {"data": sources({"path": None, "embedded": "poems"})}, ["embedded", "poems", "stories"]),
    ("validation beyond one", {"data": {"validation": 5}}, ["data.validation", "5", "1 or less"]),
    ("balanced with weights", {"data": {**sources(), "mixing": "balanced"}}, ["data", "balanced", "weight 1"]),
    ("score without a bound", {"data": sources({"filter": {"score_column": "s"}})}, ["filter", "min_score"]),
    ("least above most", {"data": sources({"filter": {"min_chars": 9, "max_chars": 3}})}, ["filter", "9", "3"]),
    ("two tokenizers", {"tokenizer": {"hf": "x", "tiktoken": "gpt2"}}, ["tokenizer", "exactly one"]),
    ("no tokenizer", {"tokenizer": None}, ["tokenizer is missing", "tiktoken"]),
    ("vocabulary below the bytes", {"tokenizer": {"train": {"vocab_size": 100}}}, ["vocab_size", "100", "257"]),
    ("no model", {"model": {}}, ["model.model_type", "llama"]),
    ("too few positions", {"model": {"model_type": "gpt2", "n_positions": 16}}, ["sequence_length", "32", "16"]),
    ("a bad name", {"name": "my run"}, ["name", "my run", "letters"]),
    ("no name of the recipe", {"name": None}, ["name = null: must be text"]),
    ("a number for text", {"init_from": 5}, ["init_from", "5", "text"]),
    ("negative patience", {"data": {"patience_minutes": -1}}, ["data.patience_minutes", "-1", "above 0"]),
    ("a huge count", {"train": {"steps": "9" * 400}}, ["train.steps", "999", "too large"]),
]


@pytest.mark.parametrize(("changes", "expected"), [row[1:] for row in SECTIONS], ids=[row[0] for row in SECTIONS])
def test_a_wrong_recipe_is_one_sentence(changes: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(text_of(**changes), tmp_path)
    check_sentence(str(caught.value), ["mine.yaml", *expected])


def check_sentence(sentence: str, expected: list[str]) -> None:
    """One line, with everything that it must name, and without the words of the libraries below."""
    sentence = re.sub(r"/\S*/", "", sentence)  # a folder's name must not pass for a value
    for words in expected:
        assert words in sentence, sentence
    assert "\n" not in sentence and len(sentence) < 500
    for leaked in (
        "Value error",
        "Input should",
        "pydantic",
        "dictionary",
        "NoneType",
        "BeforeValidator",
        "instance of",
    ):
        assert leaked not in sentence, sentence


GOOD = text_of()
TEXTS: list[tuple[str, bytes, list[str]]] = [
    ("a key twice", (GOOD + "name: other\n").encode(), ["'name' stands twice", "line"]),
    ("a nested key twice", GOOD.replace("  steps: 12\n", "  steps: 12\n  steps: 13\n").encode(), ["'steps' stands"]),
    ("an alias bomb", b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n", ["line 2", "alias"]),
    ("a merge key", (GOOD + "base: &base {a: 1}\nmore:\n  <<: *base\n").encode(), ["alias"]),
    ("tabs", b"name: x\ntrain:\n\tsteps: 5\n", ["line 3", "tab"]),
    ("a binary file", bytes(range(256)) * 4, ["mine.yaml"]),
    ("a picture", b"\x89PNG\r\n\x1a\n" + bytes(100), ["UTF-8"]),
    ("control characters", b"name: a\x00b\n", ["mine.yaml", "plain text"]),
    ("2 MB", b"# " + b"x" * 2_000_000 + b"\n", ["bytes", "at most"]),
    ("an empty file", b"", ["mapping"]),
    ("only a comment", b"# nothing\n", ["mapping"]),
    ("a list", b"- a\n- b\n", ["mapping"]),
    ("a sentence", b"please train a model\n", ["mapping"]),
    ("an open bracket", b"name: [a, b\n", ["line"]),
    ("a Python object", b"name: !!python/object/apply:os.system ['true']\n", ["line 1", "tags", "os.system"]),
    ("a Python name", b"name: !!python/name:os.system\n", ["line 1", "tags", "os.system"]),
    ("an unhashable key", b"? [a, b]\n: 1\n", ["key ['a', 'b'] is not text", "line"]),
    ("a date by its tag", b"name: !!timestamp 2024-01-01\n", ["line 1", "tags"]),
    ("binary by its tag", b"name: !!binary aGVsbG8=\n", ["line 1", "tags"]),
    ("a number that is none", b"name: !!int x\n", ["mine.yaml"]),
    ("a number for a key", (GOOD + "5: x\n").encode(), ["key 5 is not text", "line"]),
    ("true for a key", (GOOD + "true: x\n").encode(), ["key True is not text", "line"]),
    ("two documents", (GOOD + "---\n" + GOOD).encode(), ["line"]),
    ("deep nesting", b"a: " + b"[" * 5000 + b"]" * 5000, ["nested too deeply"]),
    ("a clock for a number", GOOD.replace("steps: 12", "steps: 12:30:00").encode(), ["train.steps", "12:30:00"]),
    ("not a number", GOOD.replace("learning_rate: 0.003", "learning_rate: .nan").encode(), ["learning_rate", ".nan"]),
    ("a date for a name", GOOD.replace("name: tiny", "name: 2024-01-01 x").encode(), ["name", "2024-01-01 x"]),
    ("unquoted braces", GOOD.replace("name: tiny", "name: {tiny}").encode(), ["name"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_a_wrong_file_is_one_sentence(content: bytes, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Recipe.load(str(path))
    check_sentence(str(caught.value), ["mine.yaml", *expected])


OVERRIDES: list[tuple[str, list[str]]] = [
    ("train.stepps=5", ["train.stepps", "did you mean 'steps'"]),
    ("train.steps", ["train.steps", "section.field=value"]),
    ("=5", ["=5", "section.field=value"]),
    ("train..steps=5", ["train..steps", "section.field=value"]),
    ("train.steps=many", ["train.steps", "many"]),
    ("train.steps=", ["train.steps", "number"]),
    ("train.steps=1e999999999", ["train.steps", "too large"]),
    ("train.steps=007", ["train.steps", "007", "number"]),
    ("train.steps=-1e3", ["train.steps", "1 or more"]),
    ("train.compile=1", ["train.compile", "1", "true or false", "auto"]),
    ("about.intended_use=5", ["about.intended_use = 5", "text", "quotes"]),
    ("data.sources.web={name: web, weight: 1, url: [5]}", ["url[0]", "5", "text"]),
    ("data.sources.web={name: web, weight: 1, url: 5}", ["url ", "5", "text", "list"]),
    ("train.steps=[1", ["--set 'train.steps=[1'"]),
    ("train.steps.more=5", ["train.steps"]),
    ("data.sources.books.weight=1", ["books", "web, wiki"]),
    ("data.sources.7.weight=1", ["7", "web, wiki"]),
    ("data.sources.-1.weight=1", ["-1", "web, wiki"]),
    ("data.sources=[]", ["data.sources", "1 or more"]),
    ("train=5", ["train", "5", "mapping"]),
    ("model.hidden_size.x=1", ["model.hidden_size"]),
]


@pytest.mark.parametrize(("override", "expected"), OVERRIDES, ids=[row[0] for row in OVERRIDES])
def test_a_wrong_override_is_one_sentence(override: str, expected: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(GOOD, tmp_path, override)
    check_sentence(str(caught.value), expected)


def test_a_weight_below_one_row_in_a_thousand_names_the_smallest_that_counts(tmp_path: Path) -> None:
    small = text_of(data=sources({"weight": 0.9999}, {"weight": 0.0001}))
    with pytest.raises(UsageError) as caught:
        load(small, tmp_path)
    found = re.search(r"the smallest that counts here is ([0-9.e-]+)", str(caught.value))
    assert found and "'wiki'" in str(caught.value) and "0.0001" in str(caught.value)
    remedy = float(found[1])
    assert shares({"web": 0.9999, "wiki": remedy}) == {"web": 999, "wiki": 1}
    assert load(text_of(data=sources({"weight": 0.9999}, {"weight": remedy})), tmp_path)


def test_the_command_line_gives_the_same_sentence_with_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml", recipe_dict(train={"batch_tokens": 250}))
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    for arguments, expected in (
        (("pretrain", path), "224 or 256"),
        (("pretrain", "quickstart", "--set", "train.stepps=5"), "did you mean 'steps'"),
        (("pretrain", tmp_path / "binary.yaml"), "UTF-8"),
        (("pretrain", "quickstar"), "did you mean 'quickstart'"),
        (("pretrain", tmp_path / "none.yaml"), "no recipe"),
        (("data", "build", path), "224 or 256"),
    ):
        code, output, errors = autog(*arguments, cwd=tmp_path)
        assert code == 2, errors
        assert errors.startswith("autog: ") and expected in errors and len(errors.splitlines()) == 1
        assert not output and "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


NUMBERS = [
    ("optimizer.learning_rate", "3e-4", 3e-4),
    ("optimizer.learning_rate", "3E-4", 3e-4),
    ("optimizer.learning_rate", "1", 1.0),
    ("optimizer.learning_rate", ".5", 0.5),
    ("train.tokens", "13.1B", 13_100_000_000),
    ("train.tokens", "13_100_000_000", 13_100_000_000),
    ("train.tokens", "3e9", 3_000_000_000),
    ("train.tokens", "1.5e9", 1_500_000_000),
    ("train.tokens", "2T", 2_000_000_000_000),
    ("train.tokens", "'512k'", 512_000),
    ("train.batch_tokens", "512k", 512_000),
    ("train.batch_tokens", "4.096k", 4096),
    ("evaluate.tokens", "1M", 1_000_000),
    ("data.sources.web.weight", "0", 0.0),
]


@pytest.mark.parametrize(("field", "written", "meant"), NUMBERS, ids=[f"{row[0]}={row[1]}" for row in NUMBERS])
def test_numbers_are_read_as_people_write_them(field: str, written: str, meant: float, tmp_path: Path) -> None:
    overrides = [f"{field}={written}"]
    if field == "train.tokens":
        overrides.append("train.steps=null")
    value: Any = load(GOOD, tmp_path, *overrides)
    for key in field.split("."):
        value = value.sources if key == "sources" else (value[0] if key == "web" else getattr(value, key))
    assert value == meant and type(value) is type(meant)


TEXTS_THAT_STAY = ["yes", "no", "on", "off", "12:30:00", "007", "0x10", "0o17", "1__0k", "${HF_TOKEN}", "$HOME", "2024-01-01", "=", "<<"]  # fmt: skip # noqa: E501


@pytest.mark.parametrize("written", TEXTS_THAT_STAY)
def test_words_stay_words(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert load(GOOD, tmp_path, f"about.why={written}").about.why == written


def test_a_recipe_written_and_read_again_is_equal(tmp_path: Path) -> None:
    recipe = load(
        text_of(
            about={"why": "a: b # c", "tags": ["é", "no", "1e3"], "links": {"home": "https://example.org"}},
            train={"steps": None, "tokens": "13.1B", "batch_tokens": 512 * 32, "compile": True},
            data={**sources({"filter": {"min_chars": 10}, "language": "no"}), "validation": 0},
            optimizer={"learning_rate": 3e-4, "betas": [0.9, 0.999], "grad_clip": None},
            checkpoint={"keep": "all"},
        ),
        tmp_path,
    )
    again = load(recipe.to_yaml(), tmp_path)
    assert again == recipe and not differences(again, recipe)
    assert load(again.to_yaml(), tmp_path).to_yaml() == recipe.to_yaml()
    assert again.data.sources[0].language == "no" and again.train.compile is True


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


@given(why=WORDS, tags=st.lists(WORDS, max_size=3), rate=st.floats(1e-12, 10), weight=st.floats(0.01, 100))
def test_any_text_and_number_survives_being_written(why: str, tags: list[str], rate: float, weight: float) -> None:
    content = recipe_dict(
        about={"why": why, "tags": tags}, data=sources({"weight": weight}), optimizer={"learning_rate": rate}
    )
    recipe = Recipe.from_dict(content, "here")
    assert Recipe.from_dict(load_yaml(recipe.to_yaml(), "there"), "there") == recipe


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert Recipe.load(str(path)).name == "tiny"


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_loads(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name and recipe.about.why
    assert recipe.tokens == recipe.steps * recipe.train.batch_tokens == recipe.rows * recipe.data.sequence_length


def test_set_reaches_sources_by_number_and_by_name(tmp_path: Path) -> None:
    by_name = load(GOOD, tmp_path, "data.sources.wiki.weight=3")
    assert by_name == load(GOOD, tmp_path, "data.sources.1.weight=3")
    assert [source.weight for source in by_name.data.sources] == [0.6, 3]
    whole = load(GOOD, tmp_path, "data.sources.wiki={name: notes, weight: 1, path: notes.txt}")
    assert whole.data.sources[1].name == "notes"


def test_set_makes_sections_that_the_file_leaves_out_and_the_last_one_wins(tmp_path: Path) -> None:
    recipe = load(GOOD, tmp_path, "about.family=mine", "train.steps=5", "train.steps=7", "samples.prompts=[a, 'b=c']")
    assert (recipe.about.family, recipe.steps, recipe.samples.prompts) == ("mine", 7, ["a", "b=c"])


def test_steps_follow_from_tokens(tmp_path: Path) -> None:
    recipe = load(text_of(train={"steps": None, "tokens": 1000}), tmp_path)
    assert (recipe.steps, recipe.tokens, recipe.rows, recipe.rows_per_step) == (4, 1024, 32, 8)


@given(st.integers(1, 400), st.integers(1, 64), st.integers(1, 8))
def test_accumulation_divides_exactly_and_the_values_offered_do_too(
    rows: int, micro_batch: int, processes: int
) -> None:
    content = recipe_dict(train={"batch_tokens": rows * 32, "micro_batch": micro_batch})
    recipe = Recipe.from_dict(content, "here")
    try:
        passes = recipe.accumulation(micro_batch, processes)
    except UsageError as error:
        assert rows % (micro_batch * processes)
        field, offered = re.search(r"try train\.(\w+) = (\d+(?: or \d+)?)", str(error)).groups()  # ty: ignore
        for value in map(int, offered.split(" or ")):
            assert value > 0
            if field == "batch_tokens":
                other = Recipe.from_dict({**content, "train": {**content["train"], field: value}}, "here")
                assert other.accumulation(1, processes) >= 1
            else:
                assert recipe.accumulation(value, processes) * value * processes == rows
    else:
        assert passes * micro_batch * processes == rows


@given(st.integers(1, 2000), st.integers(1, 300))
def test_the_batch_sizes_offered_are_whole_rows(batch_tokens: int, length: int) -> None:
    assume(batch_tokens % length)
    content = recipe_dict(train={"batch_tokens": batch_tokens}, data={"sequence_length": length})
    with pytest.raises(UsageError) as caught:
        Recipe.from_dict(content, "here")
    offered = str(caught.value).rpartition("try ")[2].split(" or ")
    for value in map(int, offered):
        assert Recipe.from_dict(recipe_dict(train={"batch_tokens": value}, data={"sequence_length": length}), "here")
        assert abs(value - batch_tokens) < length


@given(st.lists(st.floats(0.05, 50), min_size=1, max_size=12))
def test_shares_sum_to_a_thousand_and_stay_within_one_row_of_the_weights(weights: list[float]) -> None:
    named = {str(number): weight for number, weight in enumerate(weights)}
    assume(min(weights) / sum(weights) > 0.001)
    quotas = shares(named)
    assert sum(quotas.values()) == 1000
    for name, weight in named.items():
        assert abs(quotas[name] - 1000 * weight / sum(weights)) < 1


def test_a_resumed_run_may_change_only_what_does_not_change_the_mathematics() -> None:
    free = ["name", "about.why", "train.micro_batch", "train.compile", "train.checkpointing", "train.log_every",
            "evaluate.every", "samples.prompts", "checkpoint.keep"]  # fmt: skip
    fixed = ["train.steps", "train.batch_tokens", "train.precision", "train.seed", "data.seed", "optimizer.betas",
             "data.sources.web.weight", "model.hidden_size", "schedule.floor", "names"]  # fmt: skip
    assert all(map(is_free, free)) and not any(map(is_free, fixed))


def test_differences_name_leaves_and_sources_by_name(tmp_path: Path) -> None:
    one = load(GOOD, tmp_path)
    two = load(GOOD, tmp_path, "data.sources.wiki.weight=0.5", "train.steps=13", "model.hidden_size=64")
    assert differences(one, two) == ["model.hidden_size", "data.sources.wiki.weight", "train.steps"]
