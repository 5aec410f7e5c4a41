"""What the tree promises: imports go down only, nothing dangerous is called, and `autog --help` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import ROOT, environment

PACKAGE = ROOT / "autog"
FILES = sorted(PACKAGE.rglob("*.py"))
GROUND = {"errors", "hooks", "terminal", "recipe_file", "recipe"}
BELOW_BOTH = GROUND | {"runs", "tokens"}
USING = {"generate", "export", "chat", "smoke"}
# What each part of the package may import of it, itself aside; the command line may import everything.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "hooks": set(),
    "terminal": set(),
    "recipe_file": {"errors"},
    "recipe": {"errors", "recipe_file"},
    "runs": GROUND,
    "tokens": GROUND | {"runs"},
    "data": BELOW_BOTH,
    "plan": BELOW_BOTH,
    "models": BELOW_BOTH | {"plan", "remote"},
    "remote": set(),
    "training": BELOW_BOTH | {"data", "models", "plan", "remote"},
    "doctor": BELOW_BOTH | {"training"},
    "launch": BELOW_BOTH | {"doctor"},
    "generate": BELOW_BOTH | {"remote"},
    "export": BELOW_BOTH | {"remote"},
    "chat": BELOW_BOTH | USING | {"remote"},
    "smoke": BELOW_BOTH | USING | {"remote"},
}
ON_TOP = {"cli", "commands", "__main__", "__init__"}
FORBIDDEN = {"eval", "exec", "compile", "__import__", "system", "popen"}


def part(path: Path) -> str:
    """The module or folder of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported, anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    mine = part(path)
    if mine in ON_TOP:
        return
    assert mine in MAY_IMPORT, f"{mine} has no place in the layers yet: give it one here"
    used = {name.split(".")[1] for name in imports(ast.parse(path.read_text())) if name.startswith("autog.")}
    assert used - {mine} <= MAY_IMPORT[mine] | {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_from_data(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not {"pickle", "marshal", "shelve", "dill", "click"} & {name.split(".")[0] for name in imports(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        called_on = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        where = f"line {node.lineno}: {ast.unparse(function)}"
        assert f"{called_on}.{name}" != "torch.load", where
        assert called_on not in ("", "os", "builtins") or name not in FORBIDDEN, where
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert options.get("shell", "False") == "False", where
        assert options.get("trust_remote_code", "False") == "False", where
        if called_on == "yaml":
            assert name in ("load", "dump", "add_implicit_resolver"), where  # load: with the strict loader only


@pytest.mark.parametrize(
    "path", [path for path in FILES if part(path) in ("recipe", "runs")], ids=lambda path: path.stem
)
def test_the_ground_floor_knows_no_torch(path: Path) -> None:
    assert not {"torch", "transformers", "accelerate"} & {
        name.split(".")[0] for name in imports(ast.parse(path.read_text()))
    }


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["recipes"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv[1:] = " + repr(arguments) + "\n"
        "from autog.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'tokenizers', 'numpy', 'pyarrow', 'onnx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_the_trainer_loads_no_datasets_and_no_arrow() -> None:
    code = "import sys, autog.training.loop; assert not {'datasets', 'pyarrow', 'pandas'} & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode == 0, ended.stderr
