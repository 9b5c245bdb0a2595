"""Baselines that need no training, shown in every comparison (`ABOUT`). Without replies in the data there is no `human`
and no `other-client`, and `constant` is one of the stock phrases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from emorl_core.files.writing import replacing
from emorl_core.scorers import ScorerError
from emorl_core.scorers.asking import Asked
from emorl_core.scorers.words import words
from training.data.clusters import clusters_of
from training.data.records import Record
from training.evaluation.cells import Cell, Reply, prompt_sha256
from training.evaluation.exams import best_replies
from training.evaluation.reporting.results import Scored, scored
from training.evaluation.scores import Scorers, measures_of, scores_of
from training.pipeline.prepare import Data, records_hash
from training.scorers.exam.constants import candidates_of, search_constants
from training.scorers.exam.examine import Asking, ExamSettings
from training.scorers.exam.nearest import nearest

HUMAN, CONSTANT, COPY, OTHER = "human", "constant", "copy", "other-client"
ABOUT: dict[str, str] = {
    HUMAN: "the data's own reply",
    CONSTANT: "the one sentence that the rewards rate best as an answer to everybody, from the training replies",
    COPY: "the prompt itself",
    OTHER: "the data's reply to the client whose prompt is most similar",
}
CONSTANT_FILE = "constant.json"
SEARCH = ExamSettings(candidates=200, prompts=16)


def baselines(out: Path, data: Data, records: Sequence[Record], scorers: Scorers) -> dict[str, Scored]:
    """Name -> its scores on the held-out `records`; none where a scorer failed. Scores and the constant are cached in
    `out` until scorers or data change."""
    texts = replies_by_rule(data, records)
    made: dict[str, Scored] = {}
    try:
        texts[CONSTANT] = [found_constant(out, data, scorers)] * len(records)
    except ScorerError as error:
        made[CONSTANT] = Scored(Cell(method=CONSTANT, seed=0, status="failed", reason=error.message))
    for name in ABOUT:
        if name in texts:
            replies = [_reply(number, record, text) for number, (record, text) in
                       enumerate(zip(records, texts[name], strict=True))]  # fmt: skip
            cell = Cell(method=name, seed=0, status="done")
            try:
                columns = scores_of(out, cell, replies, records, scorers)
            except ScorerError as error:
                made[name] = Scored(cell.model_copy(update={"status": "failed", "reason": error.message}))
                continue
            objectives = {each: columns[each] for each in scorers.objectives}
            judges = {each: columns[each] for each in scorers.judges}
            made[name] = scored(cell, objectives, judges, measures_of(replies, records))
    return made


def replies_by_rule(data: Data, records: Sequence[Record]) -> dict[str, list[str]]:
    """Baseline -> one reply per record, for all but the constant."""
    own = {record.prompt: str(record.response) for record in reversed(best_replies(data.parts.get("test", ())))}
    texts = {COPY: [record.prompt for record in records]}
    if all(record.prompt in own for record in records):
        texts[HUMAN] = [own[record.prompt] for record in records]
        near = nearest([record.prompt for record in records], clusters_of(records), count=1)
        if all(near):
            texts[OTHER] = [texts[HUMAN][others[0]] for others in near]
    return texts


def found_constant(out: Path, data: Data, scorers: Scorers) -> str:
    """The text with the best mean of the rewards, searched on training prompts."""
    train = data.parts["train"]
    mark = json.dumps([{name: scorers.marks[name] for name in scorers.objectives}, records_hash(train)])
    path = out / CONSTANT_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["mark"] == mark:
            return str(known["text"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or unreadable: search again
    asking = [Asking(scorer) for scorer in scorers.objectives.values()]

    def mean_reward(about: Sequence[Asked], replies: Sequence[str]) -> list[float]:
        columns = [ask(about, replies) for ask in asking]
        return [math.fsum(scores) / len(scores) for scores in zip(*columns, strict=True)]

    step = max(1, len(train) // SEARCH.prompts)
    candidates = candidates_of(train, most=SEARCH.candidates, seed=SEARCH.seed)
    best = search_constants(mean_reward, candidates, train[::step][: SEARCH.prompts])[0]
    with replacing(path) as temporary:
        content = {"mark": mark, "text": best.text, "mean": best.mean}
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return best.text


def _reply(number: int, record: Record, text: str) -> Reply:
    sha256 = prompt_sha256(record.prompt)
    return Reply(index=number, prompt_sha256=sha256, text=text, tokens=len(words(text)), finish_reason="stop")
