"""The exam of a comparison's rewards and judges, on the best replies of the recipe's data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emorl_core.files.writing import replacing
from emorl_core.scorers import ScorerError
from training.data.records import Record
from training.evaluation.scores import Scorers
from training.pipeline.prepare import Data, records_hash
from training.scorers.exam.examine import ExamSettings, examine
from training.scorers.exam.material import Material

EXAMS_FILE = "exams.json"
# kept short, since it is part of every report
SETTINGS = ExamSettings(replies=60, graded=300, candidates=150, prompts=12)


def exams(out: Path, data: Data, scorers: Scorers) -> dict[str, dict[str, Any]]:
    """Scorer -> `Exam.as_dict` without texts, or {"failed": reason}; empty if a part of the data has no replies. Cached
    in `out` until the scorer or the data change."""
    parts = {
        part: Material("the recipe's data", best_replies(data.parts.get(part, ())))
        for part in ("train", "validation", "test")
    }
    if not all(material.records for material in parts.values()):
        return {}
    path, known = out / EXAMS_FILE, _known(out / EXAMS_FILE)
    about = records_hash([record for material in parts.values() for record in material.records])
    found: dict[str, dict[str, Any]] = {}
    for name, scorer in scorers.all.items():
        mark = json.dumps([scorers.marks[name], about])
        kept = known.get(name, {})
        try:
            exam = kept["exam"] if kept.get("mark") == mark else examine(scorer, [parts], SETTINGS).as_dict()
        except ScorerError as error:
            exam = {"failed": error.message}
        found[name] = {"mark": mark, "exam": exam}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return {name: each["exam"] for name, each in found.items()}


def best_replies(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records with the highest level among those of their prompt. Levels of different data sets are not
    comparable."""
    top: dict[str, float] = {}
    for record in records:
        if record.response is not None:
            top[record.prompt] = max(record.level or 0.0, top.get(record.prompt, record.level or 0.0))
    return tuple(r for r in records if r.response is not None and (r.level or 0.0) == top[r.prompt])


def _known(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}  # absent or unreadable: examine again
