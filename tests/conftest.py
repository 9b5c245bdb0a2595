"""Rules for all tests: no network, no settings from the developer's shell, one thread for the tiny models.

Tests marked `gpu`, `browser`, `prometheus`, `ray` or `real_model` are skipped if what they need is missing, or fail if
EMORL_CI_REQUIRE (comma-separated marks) requires it. EMORL_REAL_MODEL is the folder of a real language model:
SmolLM2-135M-Instruct in safetensors.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

# The workers of pytest-xdist import this file again, in the environment as changed below: settings of the tests
# themselves are kept for them, under names that are not server settings.
for _name in ("CI_REQUIRE", "REAL_MODEL"):
    if (_value := os.environ.get(f"EMORL_{_name}")) is not None:
        os.environ[f"TESTS_{_name}"] = _value
_REQUIRED = {mark.strip() for mark in os.environ.get("TESTS_CI_REQUIRE", "").split(",") if mark.strip()}
_REAL_MODEL = os.environ.get("TESTS_REAL_MODEL")
for _name in [name for name in os.environ if name.startswith("EMORL_")]:
    del os.environ[_name]  # also for subprocesses: settings in a developer's shell must not change what is tested
os.environ["EMORL_COMPILE"] = "off"  # no compiler for every server; tests of compilation enable it
os.environ["EMORL_ENGINE"] = "thread"  # no extra process for every server, which costs seconds; see `own_process`
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are incompatible with fork()

import torch  # noqa: E402  the variables above are read on import
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)  # more slow down tiny models, and several test processes may share a machine

settings.register_profile("usual", max_examples=40)
settings.register_profile("thorough", max_examples=140)
settings.load_profile("usual")  # `--hypothesis-profile=thorough` selects the other one later


def pytest_xdist_auto_num_workers() -> int:
    """One more than the number of cores: tests that use a browser or a server spend half their time waiting."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run servers' engines in a separate process, as by default."""
    monkeypatch.delenv("EMORL_ENGINE")


CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str | None:
    """Path of the browser for the browser tests, if there is one."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def _missing_gpu() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device"


def _missing_browser() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "no playwright package"
    return None if chromium_path() else f"no {' or '.join(CHROMIUM_NAMES)}"


def _missing_prometheus() -> str | None:
    absent = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
    return f"no {' and no '.join(absent)}" if absent else None


def _missing_ray() -> str | None:
    return None if importlib.util.find_spec("ray") else "no ray package"


def _missing_real_model() -> str | None:
    return None if _REAL_MODEL else "no EMORL_REAL_MODEL"


_NEEDS: dict[str, Callable[[], str | None]] = {
    "gpu": _missing_gpu,
    "browser": _missing_browser,
    "prometheus": _missing_prometheus,
    "ray": _missing_ray,
    "real_model": _missing_real_model,
}


if unknown := _REQUIRED - set(_NEEDS):
    raise pytest.UsageError(f"EMORL_CI_REQUIRE names {', '.join(sorted(unknown))}; allowed: {', '.join(_NEEDS)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, missing in _NEEDS.items():
        if item.get_closest_marker(mark) is None or (reason := missing()) is None:
            continue
        if mark in _REQUIRED:
            pytest.fail(f"EMORL_CI_REQUIRE names {mark}, but this machine has {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of the real model; only for tests marked `real_model`."""
    assert _REAL_MODEL is not None, "mark the test with @pytest.mark.real_model"
    return Path(_REAL_MODEL)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; only for tests marked `browser`."""
    path = chromium_path()
    assert path is not None, "mark the test with @pytest.mark.browser"
    return path
