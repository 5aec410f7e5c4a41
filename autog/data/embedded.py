"""Documents that need no download: the Python installation's own sources, their docstrings, and stories.

Code and prose of one module carry the same group, so both fall on the same side of the validation split.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import platform
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from autog.data import stories
from autog.errors import UsageError

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
TOPICS = "pydoc_data/topics.py"  # prose that is stored as code: given out as prose only
MADE_BY_THE_BUILD = "_sysconfigdata"  # names of the machine that Python was built on, and no text
RULES = "2"  # of what is taken from a module and how it is tidied; another number where that changes
SHORTEST_PROSE_CHARS = 200  # less is a title at most; a quarter of the modules have no more

Text = tuple[str, str]  # group, text


def revision(name: str) -> dict[str, str]:
    """What pins an embedded source's documents."""
    if name == "stories":
        return {"grammar": stories.GRAMMAR}
    return {"python": platform.python_version(), "rules": RULES}


def documents(name: str, start: int, beat: Callable[[], None]) -> Iterator[tuple[int, str | None, str | None]]:
    """(number, group, text) from `start` on; the text is None where an earlier document already had the same one."""
    if name == "stories":
        for number in range(start, stories.COUNT):
            yield number, None, stories.story(number)
        return
    seen: set[bytes] = set()
    for number, (group, text) in enumerate(EMBEDDED[name]()):
        beat()
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        duplicate = digest in seen
        seen.add(digest)
        if number >= start:  # the earlier ones are read again, for what they make a duplicate
            yield number, group, None if duplicate else text


def modules() -> list[tuple[str, Path]]:
    """The standard library's modules as (path relative to it, file), sorted by the former."""
    root = Path(sysconfig.get_path("stdlib"))
    found = ((path.relative_to(root), path) for path in root.rglob("*.py"))
    kept = [
        (relative.as_posix(), path)
        for relative, path in found
        if not LEFT_OUT & set(relative.parts[:-1]) and not relative.name.startswith(MADE_BY_THE_BUILD)
    ]
    if not kept:
        raise UsageError(
            f"the sources of Python's standard library are not at {root} (some distributions ship them zipped or not "
            "at all): use a Python from python.org, conda or uv, or other sources than python-code and python-prose"
        )
    return sorted(kept)


def read_module(path: Path) -> str | None:
    """A module's text in the encoding that it declares; None if it is not what it declares."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def code() -> Iterator[Text]:
    """Each module as it stands."""
    for name, path in modules():
        if name != TOPICS and (text := read_module(path)):
            yield name, text


def prose() -> Iterator[Text]:
    """Each module's docstrings, then the language reference's topics that `help()` shows."""
    for name, path in modules():
        if name != TOPICS and len(text := docstrings(read_module(path) or "")) >= SHORTEST_PROSE_CHARS:
            yield name, text
    topics = import_module("pydoc_data.topics").topics
    for topic, text in sorted(topics.items()):
        yield f"{TOPICS}#{topic}", text.strip()


def docstrings(source: str) -> str:
    """All docstrings of a module in the order of its text, blank lines between them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules have odd escapes; that is not our business
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    found = (ast.get_docstring(node, clean=False) for node in nodes)
    cleaned = (tidy(text) for text in found if text)
    return "\n\n".join(text for text in cleaned if text)


def tidy(docstring: str) -> str:
    """A docstring without its indentation, trailing spaces and doubled blank lines."""
    lines = (line.rstrip() for line in inspect.cleandoc(docstring).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


EMBEDDED: dict[str, Callable[[], Iterator[Text]]] = {"python-code": code, "python-prose": prose}
