"""`Sampling` refuses what it cannot mean, naming the field, the value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from emorl_core.errors import EmorlError, InvalidRequest
from emorl_core.types import MAX_SEED, MIN_POSITIVE, Sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -3),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("max_new_tokens", None),
        ("min_new_tokens", -1),
        ("min_new_tokens", 65),
        ("min_new_tokens", "2"),
        ("temperature", -0.1),
        ("temperature", 100.5),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", False),
        ("temperature", 5e-324),
        ("temperature", 1e-39),
        ("temperature", 9e-9),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_p", 1e-46),
        ("top_p", 9e-9),
        ("repetition_penalty", 0),
        ("repetition_penalty", 101),
        ("repetition_penalty", -math.inf),
        ("repetition_penalty", 1e-320),
        ("repetition_penalty", 1e-40),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", 0.5),
        pytest.param("seed", 10**5000, id="seed-huge"),
        pytest.param("seed", -(10**5000), id="seed-huge-negative"),
        pytest.param("min_new_tokens", 10**5000, id="min_new_tokens-huge"),
        ("stop", ("",)),
        ("stop", ["x"]),
        ("stop", (1,)),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Sampling(**{field: value})
    error = caught.value
    assert error.param == field
    assert error.message.startswith(f"{field} is ")
    assert "allowed: " in error.message
    assert "\n" not in error.message
    assert len(error.message) < 150
    assert isinstance(error, EmorlError)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_new_tokens": 1, "min_new_tokens": 1},
        {"temperature": 0},
        {"temperature": 100},
        {"temperature": MIN_POSITIVE, "top_p": MIN_POSITIVE, "repetition_penalty": MIN_POSITIVE},
        {"repetition_penalty": 100},
        {"top_k": 10**9, "top_p": 1},
        {"seed": 0},
        {"seed": MAX_SEED},
        {"stop": ("\n", "a b")},
    ],
)
def test_the_borders_are_allowed(values: dict[str, Any]) -> None:
    assert Sampling(**values).greedy == (values.get("temperature", 0) == 0)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (("a", ""), "stop is a list with an empty text in it; allowed: texts of at least one character"),
        (("a", 1), "stop is a list with a value of type int in it; allowed: texts of at least one character"),
        (["a"], "stop is of type list; allowed: a tuple of texts"),
    ],
)
def test_what_is_wrong_with_stop_strings_is_said(stop: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Sampling(stop=stop)
    assert caught.value.message == message


def test_a_stop_string_is_not_echoed_in_its_own_error() -> None:
    """It may hold what a client said."""
    with pytest.raises(InvalidRequest) as caught:
        Sampling(stop=("my husband", ""))
    assert "husband" not in caught.value.message
