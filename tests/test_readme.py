"""What the README says is so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import tiny

README = (tiny.ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [path for path in tiny.ROOT.rglob("*") if path.suffix in (".md", ".toml", ".txt", ".yaml", ".py")]


def commands() -> list[str]:
    """The two set-up commands, as .ci/run takes them."""
    section = README.split("<!-- commands -->")[1].split("<!-- end of commands -->")[0]
    return [line for line in section.splitlines() if line and not line.startswith("```")]


def test_two_commands_do_all_the_set_up() -> None:
    first, second = commands()
    assert first == "pip install -c constraints.txt -e . && autog pretrain quickstart"
    assert second.endswith("scripts/check")


def test_ci_runs_exactly_the_two_commands(tmp_path: Path) -> None:
    script = (tiny.ROOT / ".ci" / "run").read_text()
    line = next(line for line in script.splitlines() if line.startswith("mapfile")).partition("< ")[2].strip()
    inner = line.removeprefix("<(").removesuffix(")")
    found = subprocess.run(["bash", "-c", inner], cwd=tiny.ROOT, capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == commands()


def test_the_example_recipe_is_one(tmp_path: Path) -> None:
    from autog.recipe import Recipe

    example = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert example is not None
    (tmp_path / "mine.yaml").write_text(example[1])
    assert Recipe.load(str(tmp_path / "mine.yaml")).tokens >= 20_000_000


VERBS = ["pretrain", "recipes", "doctor", "data build", "data stats", "data sample", "data prune"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_stands_in_the_readme(verb: str) -> None:
    code, output, _ = tiny.autog(*verb.split(), "--help")
    assert code == 0 and "Usage" in output
    assert verb.split()[-1] in README


def test_recipes_are_listed_with_and_without_the_verb() -> None:
    code, output, _ = tiny.autog("recipes")
    assert code == 0 and "quickstart" in output
    assert tiny.autog("pretrain")[1] == output


def test_wrong_use_is_exit_code_two_without_a_traceback() -> None:
    for arguments in (["pretrain", "quickstrt"], ["pretrain", "quickstart", "--set", "train.stepz=3"], ["nothing"]):
        code, output, errors = tiny.autog(*arguments)
        assert code == 2 and "Traceback" not in output + errors and errors


def test_the_wheel_carries_the_recipes_and_launch_configs() -> None:
    settings = (tiny.ROOT / "pyproject.toml").read_text()
    assert '"accelerate_configs" = "autog/accelerate_configs"' in settings
    assert (tiny.ROOT / "autog" / "recipes" / "quickstart.yaml").is_file()


def test_no_file_records_where_packages_came_from() -> None:
    assert "://" not in (tiny.ROOT / "constraints.txt").read_text()
    assert not [path for path in DOCUMENTS if path.name in ("uv.lock", "pylock.toml", "poetry.lock")]
