"""A recipe as a file: finding it, reading its YAML strictly, and changing single fields by `--set`."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from autog.errors import UsageError

RECIPES = Path(__file__).parent / "recipes"
MAXIMUM_RECIPE_BYTES = 1 << 20


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with autog."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """A packaged recipe's file, or the path itself; UsageError if neither is there."""
    packaged = RECIPES / f"{name_or_path}.yaml"
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name_or_path) and packaged.is_file():
        return packaged
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    close = difflib.get_close_matches(name_or_path, packaged_recipes(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(
        f"no recipe {name_or_path!r}: {hint}packaged are {', '.join(packaged_recipes())}; or give a YAML file's path"
    )


def read_recipe_text(path: Path) -> str:
    """The file's text, refused if it is too large or not UTF-8."""
    size = path.stat().st_size
    if size > MAXIMUM_RECIPE_BYTES:
        raise UsageError(
            f"{path} is {size:,} bytes; a recipe has at most {MAXIMUM_RECIPE_BYTES:,}: is it the right file?"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check that it is there and yours") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


class RecipeLoader(yaml.SafeLoader):
    """YAML as people expect it: no duplicate keys, no aliases, `3e-4` is a number, `no` and `on` are words."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ConstructorError(None, None, "aliases (*name) are not used here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def refuse_tag(self, node: Any) -> None:
        raise ConstructorError(None, None, f"tags ({node.tag}) are not used here", node.start_mark)


class RecipeDumper(yaml.SafeDumper):
    """Puts quotes around every text that this loader, or one of YAML 1.1, would read as something else."""


# Only JSON's scalars: PyYAML's YAML 1.1 rules would read 3e-4 as text, `no` as false and 12:30:00 as a number.
RecipeLoader.yaml_implicit_resolvers = {}
RecipeLoader.yaml_constructors = {
    f"tag:yaml.org,2002:{kind}": getattr(RecipeLoader, f"construct_yaml_{kind}")
    for kind in ("null", "bool", "int", "float", "str", "seq", "map")
}
RecipeLoader.add_constructor(None, RecipeLoader.refuse_tag)
for tag, pattern, first in (
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("bool", r"^(?:true|false)$", list("tf")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    for rules in (RecipeLoader, RecipeDumper):
        rules.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)


def dump_yaml(content: Any) -> str:
    """YAML that `load_yaml` reads back as the same content."""
    return yaml.dump(content, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=120)


def load_yaml(text: str, origin: str) -> Any:
    """Parses; UsageError with line and column."""
    try:
        return yaml.load(text, RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or "this is not YAML"
        if "'\\t'" in problem:
            problem = "a tab stands where only spaces may"
        raise UsageError(f"{origin}{where}: {problem}: correct that line") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(f"{origin} is not YAML: {first_line}: save the recipe as plain text") from None
    except RecursionError:
        raise UsageError(f"{origin} is nested too deeply to be a recipe") from None


def apply_override(content: dict[str, Any], override: str) -> None:
    """Sets `a.b=value` in place; items of lists are reached by number or by their `name`."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise UsageError(f"--set {override!r} is not of the form section.field=value, e.g. train.steps=200")
    value = load_yaml(text, f"--set {override!r}") if text.strip() else ""
    here: Any = content
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            index = list_index(here, key, override)
            if last:
                here[index] = value
            else:
                here = here[index]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            else:
                here[key] = {} if here.get(key) is None else here[key]
                here = here[key]
        else:
            raise UsageError(f"--set {override!r}: {'.'.join(keys[:depth])} is a single value and holds no fields")


def list_index(items: list[Any], key: str, override: str) -> int:
    """The place of an item by number or by its name."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    known = ", ".join(str(name) for name in names if name) or f"0 to {len(items) - 1}"
    raise UsageError(f"--set {override!r}: there is no item {key!r} (there are: {known})")
