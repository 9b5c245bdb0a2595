"""The project's own exchanges as a data source (`exchanges`), read from a file of the package."""

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

Manner = Literal["reflection", "empathy", "plain", "both"]
FILE = Path(__file__).with_name("exchanges.yaml")
_TRIES = 20  # attempts to draw a new filling


class ExchangesSource(Source):
    """`pairs`: a client's statement and the reply in one style. `prompts`: without replies. `both`: the plain sentence,
    then the reflection, so that a reply begins with what was said.

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
        for number, exchange in enumerate(exchanges):
            rng = Random(f"exchanges:{self.seed}:{number}")
            seen: set[str] = set()
            for _ in range(self.variants * _TRIES):
                filler = Filler(rng, sets)
                prompt = sentences(filler.fill(exchange["client"]))
                if prompt in seen:
                    continue
                seen.add(prompt)
                reply = sentences(filler.fill(_reply(exchange, self.manner))) if self.view == "pairs" else None
                yield Record(
                    prompt,
                    reply,
                    where=f"{FILE.name}: exchange {number + 1}",
                    extras={"key": str(number), "manner": self.manner},
                )
                if len(seen) == self.variants or not filler.bound:
                    break


def _reply(exchange: dict[str, str], manner: Manner) -> str:
    return f"{exchange['plain']} {exchange['reflection']}" if manner == "both" else exchange[manner]


@cache
def tables() -> tuple[dict[str, tuple[str, ...]], tuple[dict[str, str], ...]]:
    """The word sets of slots, and the exchanges: `client` and a reply in each style."""
    raw: Any = read_yaml(FILE)
    return SETS | {name: words(text) for name, text in raw["sets"].items()}, tuple(raw["exchanges"])
