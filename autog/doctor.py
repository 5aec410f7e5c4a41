"""Is this machine fit to train? Versions, devices, compiler, room; and whether GPUs can really talk to each other."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autog.runs import home, replace_durably, to_json

PROBE_SECONDS = 60.0
PROBE_BYTES = [2**power for power in range(3, 27, 3)] + [64 * 2**20]
P2P_OFF = {"NCCL_P2P_DISABLE": "1"}


def probe(processes: int, backend: str, variables: Mapping[str, str], timeout_seconds: float = PROBE_SECONDS) -> str:
    """Real all-reduces from 8 B to 64 MB in throw-away processes: `ok`, `hangs`, or what went wrong in a line.

    Cards whose driver claims that P2P works can hang, or return zeros (NVIDIA/nccl 1999, nccl-tests 117): only trying
    it tells.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    process = subprocess.Popen(
        [*command, "-m", "autog.doctor", backend],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        kill_family(process.pid)
        process.communicate()
        return "hangs"
    if process.returncode == 0:
        return "ok"
    lines = [line for line in (output + errors).splitlines() if "Error" in line or "wrong sum" in line]
    return lines[-1].strip()[:200] if lines else f"exit code {process.returncode}"


def kill_family(pid: int) -> None:
    """Ends a launcher and its workers at once; workers have sessions of their own, so a group kill misses them."""
    import psutil

    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        process.kill()


def reduce_all(backend: str) -> None:
    """What each process of a probe does: sums of known numbers, checked to the last element."""
    import torch
    import torch.distributed as dist

    from autog.hooks import pause

    rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    pause("probe")
    for size in PROBE_BYTES:
        values = torch.full((size // 4,), float(rank + 1), device=device)
        dist.all_reduce(values)
        expected = world * (world + 1) / 2
        if not bool((values == expected).all()):
            print(f"wrong sum at {size} bytes: {values[0].item()} instead of {expected}")
            sys.exit(1)
    dist.destroy_process_group()


def cards() -> list[dict[str, Any]]:
    """Name and memory of each visible CUDA card."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": card.name, "memory_gib": round(card.total_memory / 2**30, 1)} for card in found]


def p2p_key(names: list[str], driver: str | None) -> str:
    """What a verdict on P2P holds for: this host, these cards, this driver."""
    return json.dumps([socket.gethostname(), names, driver])


def known_p2p(key: str) -> dict[str, str] | None:
    """A verdict found earlier."""
    path = home() / "p2p.json"
    return json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None


def p2p_variables(processes: int, say: Any = print) -> dict[str, str]:
    """What NCCL needs to be told for these cards: nothing, or that P2P is off; tried once, then remembered."""
    from autog.training.telemetry import driver_version

    if "NCCL_P2P_DISABLE" in os.environ:
        return {}
    names = [card["name"] for card in cards()]
    if len(names) < 2:
        return {}
    key = p2p_key(names, driver_version())
    verdict = known_p2p(key)
    if verdict is None:
        say(f"trying whether {len(names)} GPUs can talk directly (once; up to {PROBE_SECONDS:.0f} s) ...")
        verdict = {"p2p": probe(processes, "nccl", {"NCCL_P2P_DISABLE": "0"})}
        if verdict["p2p"] != "ok":
            verdict["without"] = probe(processes, "nccl", P2P_OFF)
        remember(key, verdict)
    if verdict["p2p"] == "ok":
        return {}
    say(f"direct traffic between the GPUs fails ({verdict['p2p']}): training with NCCL_P2P_DISABLE=1")
    return dict(P2P_OFF)


def remember(key: str, verdict: dict[str, str]) -> None:
    """Keeps a verdict for the next start."""
    path = home() / "p2p.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    replace_durably(path, to_json({**known, key: verdict}))


def examine() -> dict[str, Any]:
    """Everything that decides how well training goes here."""
    import torch

    from autog.training.precision import choose_precision, has_amx
    from autog.training.telemetry import PACKAGES, driver_version, installed

    found = cards()
    device = torch.device("cuda" if found else "cpu")
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": installed(PACKAGES),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "cards": found,
        "cpus": os.cpu_count(),
        "amx": has_amx(),
        "precision": choose_precision("auto", device),
        "compiler": next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None),
        "home": str(home()),
        "home_free_gb": round(shutil.disk_usage(existing(home())).free / 1e9, 1),
    }
    if len(found) > 1:
        facts["p2p"] = probe(len(found), "nccl", {"NCCL_P2P_DISABLE": "0"})
        facts["without_p2p"] = probe(len(found), "nccl", P2P_OFF)
        remember(p2p_key([card["name"] for card in found], facts["driver"]), {"p2p": facts["p2p"]})
    return facts


def existing(path: Path) -> Path:
    """The path, or its nearest parent that is there."""
    return path if path.exists() else existing(path.parent)


def advice(facts: dict[str, Any]) -> list[str]:
    """What to do about what was found, in sentences."""
    lines = []
    if not facts["cards"]:
        lines.append("no CUDA card: training runs on the CPU" + (" (bf16 through AMX)" if facts["amx"] else ""))
    if facts["cards"] and facts["compiler"] is None:
        lines.append("no C compiler: training will run without torch.compile, slower; install gcc")
    if facts.get("p2p", "ok") != "ok":
        lines.append(f"P2P between the GPUs fails ({facts['p2p']}): autog sets NCCL_P2P_DISABLE=1 by itself")
    if facts.get("without_p2p", "ok") != "ok":
        lines.append(f"the GPUs cannot talk even without P2P ({facts['without_p2p']}): train with --gpus 1")
    if facts["home_free_gb"] < 5:
        lines.append(f"only {facts['home_free_gb']} GB are free at {facts['home']}: set AUTOG_HOME to a larger disk")
    return lines or ["nothing to mend"]


def report(as_json: bool) -> None:
    """`autog doctor`."""
    facts = examine()
    if as_json:
        print(json.dumps({**facts, "advice": advice(facts)}, indent=1))
        return
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    print(f"Python {facts['python']} on {facts['platform']}\n{versions}")
    for card in facts["cards"]:
        print(f"GPU: {card['name']}, {card['memory_gib']} GiB, driver {facts['driver']}")
    print(f"CPUs: {facts['cpus']}, AMX {'yes' if facts['amx'] else 'no'}; precision auto = {facts['precision']}")
    print(f"compiler: {facts['compiler'] or 'none'}; {facts['home_free_gb']} GB free at {facts['home']}")
    for line in advice(facts):
        print(f"-> {line}")


if __name__ == "__main__":
    reduce_all(sys.argv[1])
