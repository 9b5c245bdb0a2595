"""The synthetic corpus as a data source: nothing is read, a seeded grammar writes it (`synthetic`)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from training.data.records import Record, RecordSet, Tally
from training.data.rows import Source
from training.data.synthetic.styles import STYLES, Style


class SyntheticSource(Source):
    """`pairs`: distinct prompts, each answered in one of the styles. `prompts`: without the replies.

    `extras.key` names the situation behind a prompt: split by it (`data.split_by: key`), because two prompts can tell
    one story in other words.
    """

    kind: Literal["synthetic"] = "synthetic"
    view: Literal["prompts", "pairs"] = "pairs"
    count: int = Field(ge=1)  # records
    seed: int = Field(0, ge=0)
    styles: tuple[Style, ...] = STYLES

    @field_validator("styles")
    @classmethod
    def _some(cls, value: tuple[Style, ...]) -> tuple[Style, ...]:
        if not value:
            raise ValueError(f"name at least one of {', '.join(STYLES)}")
        return value

    def load(self, base: Path | None = None) -> RecordSet:  # noqa: ARG002  there is no path
        from training.data.synthetic.grammar import generate  # reads the word lists

        records = list(generate(self.count, self.seed, self.styles))
        if self.view == "prompts":
            records = [Record(record.prompt, where=record.where, extras=record.extras) for record in records]
        tally = Tally(self.on_bad_row)
        tally.rows = len(records)
        written = "\n".join(f"{record.prompt}\t{record.response or ''}" for record in records)
        return tally.close("synthetic corpus", records, hashlib.sha256(written.encode()).hexdigest())
