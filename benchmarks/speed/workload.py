"""The work of a measurement and its result, with the same interface for this engine and all peers."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Protocol

EOS = 1
_FIRST_WORD, _LAST_WORD = 300, 32000  # ids without special tokens of `benchmarks.make_bundle`'s tokenizer


@dataclass(frozen=True, slots=True)
class Work:
    """`requests` concurrent prompts of `source` tokens, each continued by exactly `new` tokens.

    The seed determines the prompts and weights, so that every engine of a round gets the same ones.
    """

    requests: int
    source: int
    new: int
    seed: int = 0
    weights_seed: int | None = None  # other weights for the same prompts

    def prompts(self) -> list[list[int]]:
        """Token ids per request, the end of sequence last."""
        dice = random.Random(f"prompts {self.seed} of {self.requests}")
        return [
            [*(dice.randrange(_FIRST_WORD, _LAST_WORD) for _ in range(self.source - 1)), EOS]
            for _ in range(self.requests)
        ]

    def weights(self, objectives: int) -> list[list[float]]:
        """For each request one positive weight per objective, with sum 1, so that every lane of every request runs."""
        dice = random.Random(f"weights {self.seed if self.weights_seed is None else self.weights_seed}")
        rows = [[dice.uniform(0.2, 1.0) for _ in range(objectives)] for _ in range(self.requests)]
        return [[each / sum(row) for each in row] for row in rows]

    def seeded(self, seed: int) -> Work:
        return replace(self, seed=seed)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. `stamps`: time of every token since the start, if the engine reports it; all requests advance
    together."""

    first: float  # start -> first token of all requests
    total: float  # start -> last token of all requests
    new: int  # tokens generated per request
    stamps: tuple[float, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()  # the tokens of each request, which tests compare

    @property
    def per_token(self) -> float:
        """Seconds per step after the first token, whatever the number of requests in it."""
        return (self.total - self.first) / (self.new - 1)

    def around(self, position: int, reach: int = 8) -> float:
        """Mean time per token near this position; needs `stamps`."""
        first, last = max(position - reach, 1), position + reach
        return (self.stamps[last - 1] - self.stamps[first - 1]) / (last - first)


@dataclass(frozen=True, slots=True)
class Setup:
    """An engine to load: which one, from where, and how."""

    engine: str  # a key of `worker.ENGINES`
    folder: str  # a bundle; peers use its base and adapters
    dtype: str  # float32, bfloat16; CTranslate2 also supports int8, llama.cpp q8_0
    objectives: int
    threads: int
    device: str = "cpu"
    slots: int = 16
    quantize: str = "off"  # how this engine stores the base's matrices


class Engine(Protocol):
    """The engine in a worker; its constructor loads it."""

    def run(self, work: Work) -> Times:
        """Do the work. Raises WrongLength if the number of tokens is not the requested one."""

    def facts(self) -> dict[str, object]:
        """How it runs, for the report: chosen settings, bytes of parameters."""


class WrongLength(RuntimeError):
    """An engine generated another number of tokens than requested, so its time would be meaningless."""


def check_length(made: int, asked: int, engine: str) -> None:
    if made != asked:
        raise WrongLength(f"{engine} made {made} tokens where {asked} were asked for")
