"""A bundle whose engine runs in its own process: requests are built here, the model is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from emorl_core.bundles.snapshot import Snapshot, steadily
from emorl_core.frontend import Frontend, Held
from emorl_core.loading import Beside, load_beside
from server.engine.process import EngineProcess


class RemoteFrontend(Frontend):
    """See `Frontend`."""

    def __init__(self, beside: Beside, process: EngineProcess, max_prompt_chars: int | None) -> None:
        held = process.held
        super().__init__(
            beside.bundle.spec,
            beside.tokenizer,
            vocab_size=held.vocab_size,
            context=held.max_positions,
            max_prompt_chars=max_prompt_chars,
            predictors=beside.predictors,
        )
        self.hashes = beside.hashes
        self.scorers = beside.scorers
        self.process = process
        self._prompts.check()

    @property
    def held(self) -> Held:
        return self.process.held


def load_apart(
    where: str | os.PathLike[str],
    options: Mapping[str, Any],
    *,
    max_prompt_chars: int | None,
    scorer_device: str | None,
    scorer_code: bool,
    queue_timeout_s: float,
) -> RemoteFrontend:
    """Blocking. Both processes read the same snapshot of the files.

    options: further arguments of `Ensemble.load`, whose errors it raises, and `EngineLost`.
    """

    def read(files: Snapshot) -> RemoteFrontend:
        process = EngineProcess(files, options, queue_timeout_s)
        try:
            beside = load_beside(files, hashed=True, scorer_device=scorer_device, scorer_code=scorer_code)
            process.loaded()
            return RemoteFrontend(beside, process, max_prompt_chars)
        except BaseException:
            process.kill()
            raise

    return steadily(where, read)
