"""The examination of a machine, with the parts that need several GPUs tried over gloo."""

from __future__ import annotations

import json

import pytest
import tiny

from autog.doctor import advice, known_p2p, probe, remember


def test_doctor_reports_the_machine_and_what_to_do() -> None:
    code, output, _ = tiny.autog("doctor", "--json")
    facts = json.loads(output)
    assert code == 0 and facts["versions"]["torch"] and facts["advice"]
    assert facts["precision"] in ("bf16", "fp32")


def test_processes_that_can_talk_are_found_to_talk() -> None:
    assert probe(2, "gloo", {"OMP_NUM_THREADS": "1"}, timeout_seconds=90) == "ok"


def test_processes_that_hang_are_ended_and_said_to_hang() -> None:
    assert probe(2, "gloo", {"AUTOG_PAUSE": "probe:100"}, timeout_seconds=3) == "hangs"


def test_a_verdict_is_remembered_for_the_same_cards_and_driver_only() -> None:
    remember("these", {"p2p": "hangs"})
    remember("others", {"p2p": "ok"})
    assert known_p2p("these") == {"p2p": "hangs"} and known_p2p("new driver") is None


@pytest.mark.parametrize(("found", "words"), [({"p2p": "hangs"}, "NCCL_P2P_DISABLE=1"), ({}, "no CUDA card")])
def test_advice_says_what_to_do(found: dict[str, str], words: str) -> None:
    facts = {"cards": [], "amx": False, "compiler": "cc", "home_free_gb": 50.0, "home": "h"}
    assert any(words in line for line in advice({**facts, **found}))
