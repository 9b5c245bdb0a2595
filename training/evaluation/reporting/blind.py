"""Blind A/B rating by people: a sheet of prompts with two replies each, a separate key, and the analysis of the
answers.

Sides and order are drawn from a seed. The sheet names no method; the key contains no text.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emorl_core.files.writing import replacing
from training.data.records import DataError, Record, Tally
from training.data.rows import csv_table, need_columns, read_text
from training.evaluation.cells import EvaluationError, prompt_sha256
from training.evaluation.reporting.side_by_side import Texts, sampled
from training.evaluation.reporting.statistics import interval_of_items, sign_flip_p

SHEET_FILE, KEY_FILE = "ab-sheet.csv", "ab-key.csv"
SHEET_COLUMNS = ("item", "prompt", "left", "right", "preference")
KEY_COLUMNS = ("item", "left_method", "right_method", "seed", "prompt_sha256")
PREFERENCES = ("left", "right", "tie")
_VALUE = {"left": 1.0, "tie": 0.5, "right": 0.0}  # the method on the left side


def sheet_and_key(
    records: Sequence[Record], texts: Texts, pairs: Sequence[tuple[str, str]], *, count: int, seed: int
) -> tuple[str, str, dict[str, int]]:
    """CSV of the sheet, CSV of the key, and for each pair the number of prompts with identical replies, which are left
    out of the sheet."""
    rows: list[tuple[str, list[str], list[str]]] = []
    same: dict[str, int] = {}
    for first, second in pairs:
        common = next((s for s in texts[first] if s in texts[second]), None)
        if common is None:
            continue
        same[f"{first},{second}"] = 0
        for place in sampled(records, count, seed):
            replies = [(first, texts[first][common][place]), (second, texts[second][common][place])]
            if replies[0][1].split() == replies[1][1].split():
                same[f"{first},{second}"] += 1
                continue
            digest = hashlib.sha256(f"{seed}:{first}:{second}:{place}".encode()).hexdigest()
            if int(digest[-1], 16) % 2:
                replies.reverse()
            item, prompt = digest[:8], records[place].prompt
            (left, left_text), (right, right_text) = replies
            shown = [item, *(_cell(text) for text in (prompt, left_text, right_text)), ""]
            rows.append((digest, shown, [item, left, right, str(common), prompt_sha256(prompt)]))
    rows.sort(key=lambda row: row[0])
    return (
        _csv(SHEET_COLUMNS, [shown for _, shown, _ in rows]),
        _csv(KEY_COLUMNS, [key for _, _, key in rows]),
        same,
    )


def write_sheet(folder: Path, sheet: str, key: str) -> bool:
    """Write both files unless a sheet exists, which somebody may be filling in. Returns whether they were written."""
    if (folder / SHEET_FILE).exists():
        return False
    for name, text in ((KEY_FILE, key), (SHEET_FILE, sheet)):  # a sheet without its key could not be analysed
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return True


def score_sheets(sheets: Sequence[Path], key: Path | None = None) -> dict[str, Any]:
    """Analyse completed sheets, one per rater.

    Args:
        key: by default `ab-key.csv` beside the first sheet.

    Raises `EvaluationError`, with file and line: a missing file or column, an unknown item, an invalid preference.
    """
    if len({sheet.resolve() for sheet in sheets}) < len(sheets):
        raise EvaluationError("a sheet is given twice; one per rater", param="score_ab")
    methods = _read_key(key or sheets[0].with_name(KEY_FILE))
    raters = {path: _read_sheet(path, methods) for path in sheets}
    rated = {item: [answers[item] for answers in raters.values() if item in answers] for item in methods}
    rated = {item: answers for item, answers in rated.items() if answers}
    if not rated:
        raise EvaluationError(
            f"nothing is rated yet; fill in the column preference with {', '.join(PREFERENCES)}", param="score_ab"
        )
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    for item, answers in rated.items():
        left, right = methods[item]
        value = float(np.mean([_VALUE[answer] for answer in answers]))
        pair = (min(left, right), max(left, right))
        pairs.setdefault(pair, {})[item] = value if left == pair[0] else 1.0 - value
    given = [answer for answers in rated.values() for answer in answers]
    return {
        "raters": len(sheets),
        "items": len(methods),
        "rated": len(rated),
        "ratings": len(given),
        "left": given.count("left") / max(1, len(given) - given.count("tie")),
        "pairs": [_pair(pair, list(values.values())) for pair, values in sorted(pairs.items())],
        "agreement": _agreement([answers for answers in rated.values() if len(answers) > 1]),
    }


def _pair(pair: tuple[str, str], values: Sequence[float]) -> dict[str, Any]:
    """`values`: for the first method, one per item, in [0, 1]."""
    numbers = np.array(values, dtype=np.float64)
    rate = interval_of_items(numbers)
    return {
        "first": pair[0],
        "second": pair[1],
        "items": len(values),
        "wins": int(np.sum(numbers > 0.5)),
        "ties": int(np.sum(numbers == 0.5)),
        "losses": int(np.sum(numbers < 0.5)),
        "win_rate": {"mean": rate.estimate, "low": rate.low, "high": rate.high},
        "p": sign_flip_p(numbers - 0.5),
    }


def _agreement(items: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """Share of pairs of raters that agree, and Krippendorff's alpha. None with a single rater."""
    if not items:
        return None
    together = [a == b for answers in items for a, b in itertools.combinations(answers, 2)]
    return {"items": len(items), "share": float(np.mean(together)), "krippendorff_alpha": krippendorff_alpha(items)}


def krippendorff_alpha(items: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal ratings (Krippendorff 2011): 1 is perfect agreement, 0 is chance; None if all
    ratings are equal. items: the ratings of each item, two or more."""
    counts = Counter(answer for answers in items for answer in answers)
    total = sum(counts.values())
    expected = total**2 - sum(count**2 for count in counts.values())
    if not expected:
        return None
    observed = 0.0
    for answers in items:
        own = Counter(answers)
        disagreeing = len(answers) ** 2 - sum(count**2 for count in own.values())
        observed += disagreeing / (len(answers) - 1)
    return 1.0 - (total - 1) * observed / expected


def _read_key(path: Path) -> dict[str, tuple[str, str]]:
    return {row["item"]: (row["left_method"], row["right_method"]) for _, row in _read(path, KEY_COLUMNS)}


def _read_sheet(path: Path, items: Mapping[str, Any]) -> dict[str, str]:
    answers: dict[str, str] = {}
    seen: set[str] = set()
    for line, row in _read(path, ("item", "preference")):
        item, answer = row["item"].strip(), row["preference"].strip().lower()
        if item not in items:
            raise EvaluationError(f"{path}: row {line}: item {item[:20]!r} is not in the key", param="score_ab")
        if item in seen:
            raise EvaluationError(f"{path}: row {line}: item {item!r} is there twice", param="score_ab")
        seen.add(item)
        if answer and answer not in PREFERENCES:
            allowed = f"{', '.join(PREFERENCES)}, or nothing"
            raise EvaluationError(
                f"{path}: row {line}: preference is {answer[:20]!r}; allowed: {allowed}", param="score_ab"
            )
        if answer:
            answers[item] = answer
    return answers


def _read(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(row number, not counting the header; row)."""
    tally = Tally("skip")
    try:
        header, table = csv_table(read_text(path)[0], path.name, tally)
        need_columns(header, columns, path.name)
        rows = [row for _, row in table]
    except DataError as error:
        raise EvaluationError(error.message, param="score_ab") from None
    if tally.problems:
        raise EvaluationError(tally.problems[0], param="score_ab")
    return list(enumerate(rows, start=1))


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def _cell(text: str) -> str:
    """The text on one line, escaped so that a spreadsheet does not take it for a formula."""
    flat = " ".join(text.split())
    return f"'{flat}" if flat.startswith(("=", "+", "-", "@")) else flat
