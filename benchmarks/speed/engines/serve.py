"""`emorl serve`: this engine as someone gets it who types nothing else, through HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.http.streams import Answer, Target, ask, get
from benchmarks.load import serving
from benchmarks.speed.workload import Setup, Times, Work, check_length
from emorl_core.errors import UnsupportedModel
from emorl_core.models.compiling import check_compiler

_LETTERS = "abcdefghijklmnopqrstuvwxyz "
_COMPILED_WITHIN_S = 900


class EmorlServe:
    """A server with its default settings. It is loaded when the step that it compiles in the background serves; without
    a compiler the plain one does."""

    def __init__(self, setup: Setup) -> None:
        with ExitStack() as stack:  # a server that cannot be used ends here
            url, _ = stack.enter_context(serving(Path(setup.folder), {"port": 0, "log-level": "warning"}))
            self._target = Target.parse(url)
            self._wait_for_compiled_step()
            self._stack = stack.pop_all()

    def run(self, work: Work) -> Times:
        """One stream per request, all at once, with text of `source` tokens (the tokenizer of
        `benchmarks.make_bundle` has one per character, and adds the end of sequence)."""
        answers = asyncio.run(self._ask(work))
        for answer in answers:
            if answer.kind != "completed":
                raise RuntimeError(f"the server answered: {answer.kind}")
            check_length(answer.tokens, work.new, "emorl serve")
        stamps = [tuple(itertools.accumulate([answer.first_token_s or 0.0, *answer.gaps])) for answer in answers]
        slowest = tuple(map(max, zip(*stamps, strict=True)))
        return Times(slowest[0], slowest[-1], work.new, slowest, tuple(tuple(each.token_ids) for each in answers))

    def facts(self) -> dict[str, object]:
        info = self._info()
        step = "compiled" if info["compiled"] else "plain"
        settings = f"default settings, {info['threads']} threads, {step} step, through HTTP"
        return {"settings": settings, "parameter_bytes": info["parameter_bytes"]}

    def close(self) -> None:
        self._stack.close()

    def _wait_for_compiled_step(self) -> None:
        try:
            check_compiler()
        except UnsupportedModel:
            return
        started = time.monotonic()
        while not self._info()["compiled"] and time.monotonic() - started < _COMPILED_WITHIN_S:
            time.sleep(1.0)

    async def _ask(self, work: Work) -> list[Answer]:
        bodies = []
        for number in range(work.requests):
            dice = random.Random(f"text {work.seed} {number}")
            text = "".join(dice.choices(_LETTERS, k=work.source - 1))
            length = {"max_new_tokens": work.new, "min_new_tokens": work.new}
            bodies.append({"prompt": text, "stream": True, "seed": work.seed, **length})
        return await asyncio.gather(*(ask(self._target, body) for body in bodies))

    def _info(self) -> dict[str, Any]:
        _, text = asyncio.run(get(self._target, "/info"))
        found: dict[str, Any] = json.loads(text)
        return found
