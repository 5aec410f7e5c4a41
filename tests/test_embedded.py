"""What the embedded sources promise: no download, no document twice, code and prose of a module together."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from autog.data import stories
from autog.data.sources import Document, Skipped, changed, open_source, quiet, resolve
from autog.errors import UsageError
from autog.recipe import Source


def source(name: Any) -> Source:
    return Source(name="embedded", weight=1, embedded=name)


def read(name: str, position: dict[str, Any] | None = None) -> list[Document | Skipped]:
    chosen = source(name)
    return list(open_source(chosen, resolve(chosen), position, quiet))


@pytest.fixture(scope="module")
def everything() -> dict[str, list[Document | Skipped]]:
    return {name: read(name) for name in ("python-code", "python-prose", "stories")}


def megabytes(items: list[Document | Skipped]) -> float:
    return sum(len(item.text.encode()) for item in items if isinstance(item, Document)) / 1e6


def test_the_sizes_are_what_the_recipe_counts_on(everything: dict[str, list[Document | Skipped]]) -> None:
    assert 8 < megabytes(everything["python-code"]) < 20
    assert 1.5 < megabytes(everything["python-prose"]) < 5
    assert 10 < megabytes(everything["stories"]) < 20


@pytest.mark.parametrize("name", ["python-code", "python-prose", "stories"])
def test_no_text_comes_twice(everything: dict[str, list[Document | Skipped]], name: str) -> None:
    texts = [item.text for item in everything[name] if isinstance(item, Document)]
    assert len(set(texts)) == len(texts)
    assert all(item.reason == "duplicate" for item in everything[name] if isinstance(item, Skipped))


@pytest.mark.parametrize("name", ["python-code", pytest.param("python-prose", marks=pytest.mark.slow), "stories"])
def test_reading_goes_on_exactly_from_any_position(everything: dict[str, list[Document | Skipped]], name: str) -> None:
    items = everything[name]
    for stop in (1, len(items) // 2, len(items)):
        assert read(name, {"passed": stop}) == items[stop:]


def test_positions_are_plain_json() -> None:
    chosen = source("stories")
    reader = open_source(chosen, resolve(chosen), None, quiet)
    stream = iter(reader)
    first = [next(stream) for _ in range(5)]
    assert json.loads(json.dumps(reader.position())) == {"passed": len(first)}


def test_code_and_prose_of_a_module_share_their_group(everything: dict[str, list[Document | Skipped]]) -> None:
    groups = {name: {item.group for item in items if isinstance(item, Document)} for name, items in everything.items()}
    assert {"asyncio/base_events.py", "json/decoder.py"} <= groups["python-code"] & groups["python-prose"]
    only_prose = groups["python-prose"] - groups["python-code"]
    assert all(str(group).startswith("pydoc_data/topics.py#") for group in only_prose)


def test_tests_and_tools_of_the_library_are_left_out(everything: dict[str, list[Document | Skipped]]) -> None:
    groups = {str(item.group) for item in everything["python-code"] if isinstance(item, Document)}
    left_out = re.compile(r"(^|/)(test|tests|idlelib|lib2to3|site-packages|__pycache__)/|_sysconfigdata")
    assert not [group for group in groups if left_out.search(group)]


def test_another_python_is_noticed_by_name() -> None:
    chosen = source("python-code")
    assert changed(chosen, resolve(chosen)) is None
    assert "python 2.7.18" in str(changed(chosen, {"python": "2.7.18"}))
    with pytest.raises(UsageError, match=r"2\.7\.18"):
        open_source(chosen, {"python": "2.7.18"}, None, quiet)


def test_a_story_is_a_function_of_its_number_and_none_comes_twice() -> None:
    told = [stories.story(number) for number in range(stories.COUNT)]
    assert len(set(told)) == stories.COUNT
    assert told[123] == stories.story(123)


def test_stories_read_like_stories() -> None:
    text = "\n".join(stories.story(number) for number in range(2_000))
    assert not re.search(r"[{}\[\]|]|  ", text), "a template shows through"
    assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), "article"
    assert not re.search(r"\b(\w+) \1\b", text), "a word stands twice"
    assert not re.search(r"[.!?] [a-z]", text), "a sentence begins small"
    assert text.count('"') % 2 == 0


def test_prose_is_text_and_no_titles_or_empty_lines(everything: dict[str, list[Document | Skipped]]) -> None:
    texts = [item.text for item in everything["python-prose"] if isinstance(item, Document)]
    modules = [text for text in texts if "*****" not in text]  # the language reference's topics may be short
    assert len(texts) > 400 and sum(len(text) > 200 for text in modules) > 0.95 * len(modules)
    assert not any("\n\n\n" in text or " \n" in text for text in modules)
