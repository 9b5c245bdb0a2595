"""The blind sheet names no method, the key no text; scoring it gives back who wrote what was preferred."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.learn.evaluation_cells import copying, deaf, listening
from training.data.records import Record
from training.evaluation.cells import EvaluationError
from training.evaluation.reporting.blind import (
    KEY_FILE,
    SHEET_FILE,
    krippendorff_alpha,
    score_sheets,
    sheet_and_key,
    write_sheet,
)
from training.evaluation.reporting.side_by_side import sampled

RECORDS = tuple(Record(f"I feel {word} at work.") for word in "tired angry sad alone lost worried hurt stuck".split())
TEXTS = {
    "base": {1: [deaf(r.prompt) for r in RECORDS]},
    "emorl": {1: [listening(r.prompt) for r in RECORDS]},
    "copy": {1: [copying(r.prompt) for r in RECORDS]},
    "twin": {1: [listening(r.prompt) for r in RECORDS[:-1]] + ["=1+1"]},
    "none": {},
}


def sheet_in(folder: Path, *pairs: tuple[str, str], count: int = 8) -> Path:
    sheet, key, _ = sheet_and_key(RECORDS, TEXTS, pairs, count=count, seed=0)
    assert write_sheet(folder, sheet, key)
    return folder / SHEET_FILE


def fill(sheet: Path, to: Path, prefer: dict[str, str] | None, *, otherwise: str = "tie") -> Path:
    """Fill in for whoever prefers texts that start with a key of `prefer`, by side."""
    with open(sheet, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        sides = [side for side in ("left", "right") if any(row[side].startswith(start) for start in prefer or {})]
        row["preference"] = sides[0] if len(sides) == 1 else otherwise
    with open(to, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return to


def test_the_sheet_is_blind_and_the_key_holds_no_text(tmp_path: Path) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"), ("emorl", "copy"))
    text, key = sheet.read_text(), (tmp_path / KEY_FILE).read_text()
    assert not any(name in text for name in ("emorl", "base", "copy"))
    assert "feel" not in key
    with open(tmp_path / KEY_FILE, newline="") as file:
        lefts = [row["left_method"] for row in csv.DictReader(file)]
    assert len(lefts) == 16
    assert 3 < lefts.count("emorl") < 13, "sides are drawn"
    assert lefts != sorted(lefts), "so is the order"


def test_preferences_come_back_as_win_rates(tmp_path: Path) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"), ("emorl", "copy"))
    found = score_sheets([fill(sheet, tmp_path / "filled.csv", {"You feel": ""})], tmp_path / KEY_FILE)
    pairs = {(pair["first"], pair["second"]): pair for pair in found["pairs"]}
    assert pairs["base", "emorl"]["losses"] == 8
    assert pairs["base", "emorl"]["win_rate"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert pairs["copy", "emorl"]["win_rate"]["mean"] == 0.0
    assert pairs["base", "emorl"]["p"] < 0.05
    assert found["agreement"] is None, "one rater"
    ties = score_sheets([fill(sheet, tmp_path / "ties.csv", None)], tmp_path / KEY_FILE)
    assert {pair["win_rate"]["mean"] for pair in ties["pairs"]} == {0.5}
    assert {pair["p"] for pair in ties["pairs"]} == {1.0}


def test_several_raters_are_compared(tmp_path: Path) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"))
    one = fill(sheet, tmp_path / "one.csv", {"You feel": ""})
    other = fill(sheet, tmp_path / "other.csv", {"Things": ""})
    again = fill(sheet, tmp_path / "again.csv", {"You feel": ""})
    same = score_sheets([one, again], tmp_path / KEY_FILE)["agreement"]
    assert (same["share"], same["krippendorff_alpha"]) == (1.0, 1.0)
    opposed = score_sheets([one, other], tmp_path / KEY_FILE)
    assert opposed["agreement"]["share"] == 0.0
    assert opposed["agreement"]["krippendorff_alpha"] < 0
    assert opposed["pairs"][0]["ties"] == 8, "one rater each way is a tie"
    with pytest.raises(EvaluationError, match="given twice"):
        score_sheets([one, one], tmp_path / KEY_FILE)


def test_krippendorff_against_the_nominal_example_of_hayes_and_krippendorff_worked_by_hand() -> None:
    """Units aa, aa, ab, bb: o_ab = o_ba = 1, n_a = 5, n_b = 3, so alpha = 1 - 7 · 2 / (2 · 5 · 3)."""
    assert krippendorff_alpha(["aa", "aa", "ab", "bb"]) == pytest.approx(1 - 7 * 2 / 30)
    assert krippendorff_alpha(["aa", "aa"]) is None


def test_equal_replies_are_not_rated_and_formulas_are_defused(tmp_path: Path) -> None:
    sheet, _, same = sheet_and_key(RECORDS, TEXTS, [("emorl", "twin"), ("emorl", "none")], count=8, seed=0)
    assert same == {"emorl,twin": 7}
    assert sheet.count("\n") == 2
    assert "'=1+1" in sheet


def test_a_sheet_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"))
    fill(sheet, sheet, {"You feel": ""})
    before = sheet.read_bytes()
    assert not write_sheet(tmp_path, "other", "other")
    assert sheet.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("preference", "which"), "no column 'preference'"),
        (lambda text: text.replace("\n", "\n00000000,p,a,b,left\n", 1), "row 1: item '00000000' is not in the key"),
        (lambda text: text.replace(",\n", ",both\n", 1), "row 1: preference is 'both'; allowed: left, right, tie"),
        (lambda text: text + text.splitlines()[-1] + "\n", "there twice"),
        (lambda text: text, "nothing is rated yet"),
    ],
)
def test_a_sheet_that_cannot_be_scored_is_refused_by_row(change: object, message: str, tmp_path: Path) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"))
    sheet.write_text(change(sheet.read_text()))  # type: ignore[operator]
    with pytest.raises(EvaluationError) as caught:
        score_sheets([sheet])
    assert message in caught.value.message
    assert "feel" not in caught.value.message


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", ",,\n"),
        lambda text: text.replace("preference\n", "preference,,\n"),
        lambda text: text + ",,,,\n",
    ],
)
def test_a_sheet_comes_back_from_any_spreadsheet(dress: Callable[[str], str], tmp_path: Path) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"))
    fill(sheet, sheet, {"You feel": ""})
    expected = score_sheets([sheet])
    sheet.write_text(dress(sheet.read_text(encoding="utf-8")), encoding="utf-8", newline="")
    assert score_sheets([sheet]) == expected


@pytest.mark.parametrize(
    ("dress", "says"),
    [
        (lambda text: text.replace(",", ";").encode(), "1: the columns are divided by semicolons; save the file"),
        (lambda text: text.encode("utf-16"), "not UTF-8 but UTF-16"),
        (lambda text: text.replace("feel", "fe\xe9l").encode("latin-1"), "2: the row holds bytes that are not UTF-8"),
        (lambda text: text.replace("feel", "fe\0l").encode(), "2: the row holds a NUL character"),
        (lambda text: text + "x\n", ": 1 columns; the header has 5"),
    ],
)
def test_a_sheet_that_cannot_be_read_is_refused_in_one_line(
    dress: Callable[[str], bytes | str], says: str, tmp_path: Path
) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"))
    dressed = dress(sheet.read_text(encoding="utf-8"))
    sheet.write_bytes(dressed.encode() if isinstance(dressed, str) else dressed)
    with pytest.raises(EvaluationError, match=f"^{SHEET_FILE}") as caught:
        score_sheets([sheet])
    assert says in caught.value.message
    assert "on_bad_row" not in caught.value.message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    sheet = sheet_in(tmp_path, ("emorl", "base"))
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(EvaluationError, match=KEY_FILE):
        score_sheets([sheet])


def test_prompts_are_drawn_whatever_their_order() -> None:
    drawn = {RECORDS[i].prompt for i in sampled(RECORDS, 3, 0)}
    turned = RECORDS[::-1]
    assert {turned[i].prompt for i in sampled(turned, 3, 0)} == drawn
    assert {RECORDS[i].prompt for i in sampled(RECORDS, 3, 1)} != drawn
