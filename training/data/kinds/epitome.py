"""EPITOME (Sharma et al., EMNLP 2020), Reddit part: seeker post, response, level 0 / 1 / 2 of one empathy mechanism.

One file per mechanism. The files contain duplicate pairs: those that agree become one record; those that disagree are
omitted, because it is unknown which annotation is right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from training.data.records import Record, Tally, clean, one_per_prompt
from training.data.rows import FileSource, csv_table, need_columns, number_of

COLUMNS = ("seeker_post", "response_post", "level")
MECHANISMS = ("emotional-reactions", "explorations", "interpretations")
LEVELS = (0, 1, 2)


class EpitomeSource(FileSource):
    """`graded`: every pair with its level. `pairs`: the pairs of level 2. `prompts`: the seeker posts."""

    kind: Literal["epitome"] = "epitome"
    view: Literal["prompts", "pairs", "graded"] = "graded"

    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        mechanism = next((each for each in MECHANISMS if name.startswith(each)), Path(name).stem)
        header, rows = csv_table(text, name, tally)
        need_columns(header, COLUMNS, name)
        records: dict[tuple[str, str], Record] = {}
        conflicting: set[tuple[str, str]] = set()
        for where, row in rows:
            prompt, response, level = clean(row["seeker_post"]), clean(row["response_post"]), number_of(row["level"])
            if not prompt or not response:
                tally.malformed(where, f"{'seeker_post' if not prompt else 'response_post'} is empty")
                continue
            if level not in LEVELS:
                tally.malformed(where, f"level is not one of {', '.join(map(str, LEVELS))}")
                continue
            record = Record(prompt, response, level, (), where, {"mechanism": mechanism})
            known = records.setdefault((prompt, response), record)
            if known is not record:
                tally.counts["repeated rows"] += 1
                if known.level != record.level:
                    conflicting.add((prompt, response))
        tally.counts["pairs with conflicting levels left out"] = len(conflicting)
        kept = [record for pair, record in records.items() if pair not in conflicting]
        if self.view == "prompts":
            return one_per_prompt(kept)
        return [record for record in kept if record.level == 2.0] if self.view == "pairs" else kept
