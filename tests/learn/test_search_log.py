"""The log of evaluations: whole lines or none, and only of the same search."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.search.evaluations.log import EvaluationLog
from training.search.strategies.grid import SearchError

ABOUT = {"bundle": "abc", "scorers": {"a": {"kind": "x", "weights": (1, 2)}}}


def filled(path: Path) -> Path:
    log = EvaluationLog(path, ABOUT, resume=False)
    log.append([{"point": [1.0, 0.1]}, {"point": [0.0, 0.3]}])
    log.append([])
    log.append([{"point": [0.5, 0.5]}])
    return path


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "log.jsonl")
    assert EvaluationLog(path, ABOUT, resume=True).read == [
        {"point": [1.0, 0.1]},
        {"point": [0.0, 0.3]},
        {"point": [0.5, 0.5]},
    ]


@pytest.mark.parametrize("torn", ['{"poi', '{"point": [0.25, 0.75]}', "\x00\x00", "{"])
def test_a_torn_last_line_is_cut_off_before_more_is_written(torn: str, tmp_path: Path) -> None:
    path = filled(tmp_path / "log.jsonl")
    with path.open("a") as file:
        file.write(torn)
    log = EvaluationLog(path, ABOUT, resume=True)
    assert len(log.read) == 3
    log.append([{"point": [0.75, 0.25]}])
    assert [line["point"] for line in EvaluationLog(path, ABOUT, resume=True).read][2:] == [[0.5, 0.5], [0.75, 0.25]]


@pytest.mark.parametrize("left", ["", '{"format": "emorl-se'])
def test_a_log_killed_in_its_first_line_starts_anew(left: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(left)
    EvaluationLog(path, ABOUT, resume=True).append([{"point": [1.0]}])
    assert EvaluationLog(path, ABOUT, resume=True).read == [{"point": [1.0]}]


def test_an_earlier_search_is_not_touched_unasked(tmp_path: Path) -> None:
    path = filled(tmp_path / "log.jsonl")
    before = path.read_bytes()
    with pytest.raises(SearchError, match="--resume goes on with it, --overwrite starts anew"):
        EvaluationLog(path, ABOUT, resume=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize("about", [{**ABOUT, "bundle": "other"}, {**ABOUT, "scorers": {}}, {**ABOUT, "more": 1}])
def test_the_log_of_another_search_is_not_resumed(about: dict[str, object], tmp_path: Path) -> None:
    path = filled(tmp_path / "log.jsonl")
    with pytest.raises(SearchError, match=r"had another (bundle|scorers|more)"):
        EvaluationLog(path, about, resume=True)


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "log.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    with pytest.raises(SearchError, match="line 2 is not a JSON object"):
        EvaluationLog(path, ABOUT, resume=True)
