"""Goals: one number from a score table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.search.score_table import ScoreTable, parse_goal
from training.search.strategies.grid import SearchError

NAMES = ("reflection", "empathy")
TABLE = ScoreTable(NAMES, np.array([[0.2, 0.8], [0.4, 0.9], [0.6, 0.1]]))


def least_of_products(table: ScoreTable) -> float:
    return float((table.column("reflection") * table.column("empathy")).min())


def not_a_number(table: ScoreTable) -> float:
    return math.nan


def a_text(table: ScoreTable) -> str:
    return "much"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mean", 0.5),
        ("worst", 0.4),
        ("weighted:empathy=1", 0.6),
        ("weighted:reflection=1,empathy=3", 0.55),
        (f"{__name__}:least_of_products", 0.06),
        (f"{__name__}.least_of_products", 0.06),
    ],
)
def test_goals(text: str, value: float) -> None:
    assert parse_goal(text, NAMES)(TABLE) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("best", "goal is 'best'; allowed: mean, worst, weighted"),
        ("weighted:humour=1", r"'humour' is no scorer; scorers: reflection, empathy"),
        ("weighted:reflecton=1", "did you mean 'reflection'"),
        ("weighted:empathy", "is not NAME=NUMBER"),
        ("weighted:empathy=-1", "from 0"),
        ("weighted:empathy=0", "not all 0"),
        ("weighted:empathy=inf", "finite"),
        ("no_such_module:goal", "cannot import no_such_module"),
        ("math:no_such", "no function 'no_such'"),
    ],
)
def test_bad_goals_are_refused(text: str, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        parse_goal(text, NAMES)


@pytest.mark.parametrize(("name", "says"), [("not_a_number", "returned nan"), ("a_text", "returned a str")])
def test_a_goal_that_gives_no_number_is_named(name: str, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        parse_goal(f"{__name__}:{name}", NAMES)(TABLE)


def test_a_table_of_drawn_prompts_repeats_them() -> None:
    drawn = TABLE.taken([2, 2, 0])
    assert drawn.column("empathy").tolist() == [0.1, 0.1, 0.8]
    assert drawn.prompts == 3
    assert drawn.means["reflection"] == pytest.approx(1.4 / 3)


def test_tables_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(SearchError, match="for 2 scorers"):
        ScoreTable(NAMES, np.zeros((3, 3)))
