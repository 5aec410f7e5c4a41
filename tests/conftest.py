"""What every test has: no network, one thread, its own home for token stores, and a tiny tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
for variable in ("AUTOG_PAUSE", "HF_TOKEN", "LOCAL_RANK", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(variable, None)

import tiny  # noqa: E402 - after the variables that libraries read when they are imported
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "autog",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("autog")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An AUTOG_HOME of the test's own, so that no test sees the token stores of another."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("AUTOG_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE, trained once."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny.train_tokenizer(directory)
    return directory
