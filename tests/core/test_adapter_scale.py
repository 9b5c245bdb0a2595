"""The scale of an adapter's update: `lora_alpha`, and PEFT's patterns for single modules."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from emorl_core.adapters.adapter import read_peft
from emorl_core.bundles.bundle import ADAPTERS_DIR
from tests.core.adapter_folders import edit_config, refusal


@pytest.fixture
def folder(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a sound adapter, to be spoilt."""
    return Path(shutil.copytree(plain_bundle / ADAPTERS_DIR / "empathy", tmp_path / "spoilt"))


@pytest.mark.parametrize("alpha", [None, "32", float("nan"), float("inf"), True, [32], {"a": 1}])
def test_an_alpha_that_is_no_number_is_refused(alpha: object, folder: Path) -> None:
    assert "lora_alpha of module" in refusal(edit_config(folder, lora_alpha=alpha))
    assert "lora_alpha of module" in refusal(edit_config(folder, lora_alpha=8, alpha_pattern={"q": alpha}))


@pytest.mark.parametrize(("alpha", "reason"), [(10**400, "a whole number of 401 digits"), (1e300, "beyond float32")])
def test_an_alpha_that_is_too_large_to_be_used_is_refused(alpha: float, reason: str, folder: Path) -> None:
    assert reason in refusal(edit_config(folder, lora_alpha=alpha))
    assert reason in refusal(edit_config(folder, lora_alpha=8, alpha_pattern={"q": alpha}))


@pytest.mark.parametrize("option", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (["q"], "{} is a list; allowed: a mapping of module paths to numbers"),
        ("q", "{} is a str; allowed: a mapping"),
        (8, "{} is a int; allowed: a mapping"),
        ({"(": 8}, "{} key '(' is not a regular expression"),
        ({"q" * 301: 8}, "{} has a key of 301 letters; allowed: up to 300"),
        # The first three of these are beyond what can be compiled, in time or in memory.
        ({"(" * 60 + "a" + ")+?" * 60: 8}, "is more than picks modules by their paths; write a path"),
        ({"(?:" * 30 + "a" + "){1,9}" * 30: 8}, "is more than picks modules by their paths"),
        ({"(?i:" + "[a-\U0010ffff]" * 49 + ")": 8}, "is more than picks modules by their paths"),
        ({"(?:a{1,9}){1,9}": 8}, "is more than picks modules by their paths"),
        ({"(?=q)q": 8}, "is more than picks modules by their paths"),
        ({r"(q)\1": 8}, "is more than picks modules by their paths"),
        ({r"\p{L}": 8}, "is more than picks modules by their paths"),
        ({"q{2}{2}": 8}, "is not a regular expression"),
    ],
)
def test_a_table_of_patterns_that_cannot_be_used_is_refused(
    option: str, table: object, reason: str, folder: Path
) -> None:
    assert reason.format(option) in refusal(edit_config(folder, **{option: table}))


@pytest.mark.parametrize("pattern", [r"(a|b|ab|.|\w)*[0-9]", r"(?:\w|\w\w|\w\w\w|.)*\d"])
def test_an_expression_that_never_ends_is_given_up(pattern: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And other threads run meanwhile: a server answers while it reloads."""
    monkeypatch.setattr("emorl_core.adapters.patterns._MOST_S", 0.3)
    turns, stop = [0], threading.Event()

    def count() -> None:
        while not stop.wait(0.01):
            turns[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        message = refusal(edit_config(folder, alpha_pattern={pattern: 8}))
    finally:
        stop.set()
        thread.join()
    assert "takes longer than 0.3 s to match; write the module's path" in message
    assert turns[0] > 0


def test_the_time_for_matching_is_one_for_all_keys_and_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    class Slow:
        def match(self, module: str, *, timeout: float, concurrent: bool) -> None:
            asked.append(timeout)
            if timeout < 0.25:
                raise TimeoutError
            now[0] += 0.25

    now = [0.0]
    monkeypatch.setattr("emorl_core.adapters.patterns.regex.compile", lambda pattern: Slow())
    monkeypatch.setattr("emorl_core.adapters.patterns.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("emorl_core.adapters.patterns._MOST_S", 1.0)
    assert "takes longer than 1 s" in refusal(edit_config(folder, alpha_pattern={"x": 8, "y": 8}))
    assert asked == [1.0, 0.75, 0.5, 0.25, 1e-3]


def test_patterns_follow_pefts_rule(folder: Path) -> None:
    """A key is a regular expression for the end of a path, from its start or after a dot; the first match counts."""
    patterns = {
        "block.0.layer.0.SelfAttention.q": 8,
        r"decoder\..*\.q": 12,
        "q": 20,
        "EncDecAttention.[kv]": 2,
        "ff": 99,
    }
    modules = read_peft(edit_config(folder, alpha_pattern=patterns), "empathy").modules
    scales = {name: pair.scale for name, pair in modules.items()}
    assert scales["encoder.block.0.layer.0.SelfAttention.q"] == 8 / 4
    assert scales["decoder.block.0.layer.0.SelfAttention.q"] == 8 / 4
    assert scales["decoder.block.1.layer.1.EncDecAttention.q"] == 12 / 4
    assert scales["encoder.block.1.layer.0.SelfAttention.q"] == 20 / 4
    assert scales["decoder.block.2.layer.1.EncDecAttention.v"] == 2 / 4
    assert scales["encoder.block.0.layer.1.DenseReluDense.wi"] == 8 / 4


def test_the_scale_is_alpha_over_rank_or_over_its_root(folder: Path) -> None:
    assert {pair.scale for pair in read_peft(edit_config(folder, lora_alpha=6), "x").modules.values()} == {6 / 4}
    assert {pair.scale for pair in read_peft(edit_config(folder, use_rslora=True), "x").modules.values()} == {6 / 2}
