"""The project's own exchanges as a data source (`exchanges`), read from files of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import Field

from emorl_core.files.documents import read_yaml
from training.data.records import Record, RecordSet, Tally
from training.data.rows import Source
from training.data.synthetic.slots import Filler, sentences
from training.data.synthetic.tables import words
from training.data.synthetic.words import SETS

Manner = Literal["reflection", "empathy", "plain"]
FOLDER = Path(__file__).parent
SLOTS_FILE = "slots.yaml"  # word sets; every other file is a list of exchanges
_TRIES = 20  # attempts to draw a new filling


class ExchangesSource(Source):
    """`pairs`: a client's statement and the reply in one style. `prompts`: without replies.

    An exchange with slots is filled `variants` times, in the same way for every style; `extras.key` names the exchange.
    """

    kind: Literal["exchanges"] = "exchanges"
    view: Literal["prompts", "pairs"] = "pairs"
    manner: Manner = "reflection"
    variants: int = Field(3, ge=1)  # per exchange with slots
    seed: int = Field(0, ge=0)

    def load(self, base: Path | None = None) -> RecordSet:  # noqa: ARG002  there is no path
        records = list(self._records())
        tally = Tally(self.on_bad_row)
        tally.rows = len(records)
        written = "\n".join(f"{record.prompt}\t{record.response or ''}" for record in records)
        return tally.close("exchanges", records, hashlib.sha256(written.encode()).hexdigest())

    def _records(self) -> Iterator[Record]:
        sets, exchanges = tables()
        for key, exchange in exchanges.items():
            rng = Random(f"exchanges:{self.seed}:{key}")
            seen: set[str] = set()
            for _ in range(self.variants * _TRIES):
                filler = Filler(rng, sets)
                prompt = sentences(filler.fill(exchange["client"]))
                if prompt in seen:
                    continue
                seen.add(prompt)
                reply = sentences(filler.fill(exchange[self.manner])) if self.view == "pairs" else None
                yield Record(prompt, reply, where=key, extras={"key": key, "manner": self.manner})
                if len(seen) == self.variants or not filler.bound:
                    break


@cache
def tables() -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, str]]]:
    """The word sets of slots, and the exchanges: `client` and a reply in each style, by file and number."""
    own: dict[str, str] = read_yaml(FOLDER / SLOTS_FILE)
    exchanges: dict[str, dict[str, str]] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        if file.name != SLOTS_FILE:
            listed: Any = read_yaml(file)
            exchanges |= {f"{file.name}: exchange {number}": each for number, each in enumerate(listed, start=1)}
    return SETS | {name: words(text) for name, text in own.items()}, exchanges
