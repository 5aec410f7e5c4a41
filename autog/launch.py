"""In this process or through `accelerate launch`: which, with how many processes, in which environment."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autog.errors import UsageError
from autog.recipe_file import load_yaml

CONFIG_FOLDERS = (Path(__file__).parent / "accelerate_configs", Path(__file__).parent.parent / "accelerate_configs")
SHUTDOWN_SECONDS = 900  # torchelastic's 30 s between SIGTERM and SIGKILL would cut a large save short


@dataclass(frozen=True)
class Launch:
    """A command with the environment variables it needs; `processes` counts those on all machines."""

    command: list[str]
    variables: dict[str, str]
    processes: int
    machines: int
    on_cpu: bool

    def as_text(self) -> str:
        """The command as it can be typed."""
        return " ".join([*(f"{key}={value}" for key, value in self.variables.items()), shlex.join(self.command)])


def under_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether accelerate or torchrun started this process."""
    return "LOCAL_RANK" in environment


def config_names() -> list[str]:
    """The accelerate configs that come with autog."""
    return sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})


def find_config(name: str) -> Path:
    """A packaged accelerate config by name, or a file; UsageError if neither."""
    for folder in CONFIG_FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    raise UsageError(f"--accelerate-config {name}: packaged are {', '.join(config_names())}; or give a file's path")


def read_config(path: Path) -> dict[str, Any]:
    """An accelerate config's content."""
    content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict) or "num_processes" not in content:
        raise UsageError(f"{path} is no accelerate config: it must say num_processes")
    return content


def plan_launch(arguments: list[str], gpus: int | None, config_name: str | None, p2p: str) -> Launch | None:
    """The launch of several processes for these autog arguments; None if one process, here, is what is asked for."""
    if config_name is None and (gpus or 1) == 1:
        return None
    path = find_config(config_name or "two_gpu_ddp")
    config = read_config(path)
    processes = int(gpus or config["num_processes"])
    if processes == 1 and int(config.get("num_machines", 1)) == 1:
        return None
    on_cpu = bool(config.get("use_cpu"))
    variables = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS)}
    if on_cpu:
        variables["ACCELERATE_USE_CPU"] = "true"
    elif p2p == "auto":
        from autog.doctor import p2p_variables

        variables |= p2p_variables(processes)
    else:
        variables["NCCL_P2P_DISABLE"] = "1" if p2p == "off" else "0"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    command += ["--num_processes", str(processes)]
    if "num_cpu_threads_per_process" not in config and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // processes)
        command += ["--num_cpu_threads_per_process", str(threads)]
    machines = int(config.get("num_machines", 1))
    return Launch([*command, "--module", "autog", *arguments], variables, processes, machines, on_cpu)


def execute(launch: Launch) -> None:
    """Becomes the launcher: exit code, signals and Ctrl-C pass through."""
    sys.stdout.flush()
    os.execve(launch.command[0], launch.command, {**os.environ, **launch.variables})


def refuse_native_windows() -> None:
    """autog runs on Linux, WSL2 and macOS."""
    if sys.platform == "win32":
        raise UsageError("autog needs Linux, WSL2 or macOS: on Windows run it inside WSL2")
