"""Psych8k (Liu et al. 2023): a JSON list of {instruction, input, output}. The prompt is `input`, the reply `output`.

Access to the set is gated by its authors, so this loader is tested with files in the same format.
"""

from __future__ import annotations

from typing import Literal

from training.data.records import Record, Tally, clean, one_per_prompt
from training.data.rows import FileSource, json_list

KEYS = ("instruction", "input", "output")


class Psych8kSource(FileSource):
    """`prompts`: the distinct prompts with their outputs as references. `pairs`: one record per item."""

    kind: Literal["psych8k"] = "psych8k"
    view: Literal["prompts", "pairs"] = "pairs"

    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        records: list[Record] = []
        seen: set[tuple[str, str]] = set()
        for where, item in json_list(text, name, tally):
            fault = next((key for key in KEYS if not isinstance(item.get(key), str)), None)
            if fault is not None:
                tally.malformed(where, f"{fault!r} is {'missing' if fault not in item else 'not a string'}")
                continue
            prompt, response = clean(str(item["input"])), clean(str(item["output"]))
            if not prompt or not response:
                tally.malformed(where, f"{'input' if not prompt else 'output'!r} is empty")
                continue
            if (prompt, response) in seen:
                tally.counts["duplicates"] += 1
                continue
            seen.add((prompt, response))
            records.append(Record(prompt, response, None, (response,), where))
        return records if self.view == "pairs" else one_per_prompt(records)
