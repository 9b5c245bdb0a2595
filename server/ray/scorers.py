"""A bundle's scorers as a separate Ray Serve deployment: the actor, and the replicas' client of it.

Limits and timeouts are those of scoring within a server (`server/serving/scoring.py`): a text that cannot be scored, or
not in time, is left unscored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from emorl_core.bundles.bundle import BundleSpec
from emorl_core.bundles.snapshot import Snapshot, steadily
from emorl_core.bundles.stored_scorers import load_scorers
from server.ray.plan import Plan
from server.serving.scoring import BUSY, FAILED, TIMEOUT, MakeScoring, Scores, Scoring, ScoringThread
from server.settings import Settings
from server.watch.log_queue import to_stderr
from server.watch.logs import logging_to
from server.watch.metrics import EngineReading, Metrics

logger = logging.getLogger("emorl.server")

_WAY_S = 2.0  # for the round trip, beyond the scorers' own timeout


class ScorerReplica:
    """The actor: asks the scorers of one bundle, on a thread beside the event loop.

    Raises:
        BundleError: they cannot be loaded.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        import torch

        self._settings = settings = Plan.read(args).replica_settings()
        torch.set_num_threads(int(settings.threads))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._log = ExitStack()
        self._log.enter_context(logging_to(to_stderr(), settings))
        self._identity, self._scorers = steadily(
            str(settings.bundle), partial(_loaded, device=settings.scorer_device, code=settings.scorer_code)
        )
        self._metrics = Metrics(EngineReading, ())  # replicas keep their own metrics
        self._metrics.know_scorers(self._scorers)
        self._scoring: ScoringThread | None = None  # created on the event loop

    async def score(self, identity: str, prompts: Sequence[str], texts: Sequence[str]) -> list[Scores] | None:
        """The scores; None if these scorers belong to an older or newer version than the caller's."""
        if identity != self._identity:
            return None
        if self._scoring is None:
            self._scoring = ScoringThread(self._scorers, self._settings, self._metrics)
        return await self._scoring.score(prompts, texts)

    def __del__(self) -> None:
        self._log.close()


class AskedScoring(Scoring):
    """A replica's client of the scorer deployment."""

    def __init__(self, handle: DeploymentHandle, spec: BundleSpec, settings: Settings, metrics: Metrics) -> None:
        super().__init__(spec.scorers, metrics)
        self._ask, self._identity = handle.score, identity_of(spec)
        self._timeout_s = settings.score_timeout_s + _WAY_S

    async def stop(self) -> None:
        """Nothing to release."""

    async def _some(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Scores]:
        response = self._ask.remote(self._identity, list(prompts), list(texts))
        try:
            async with asyncio.timeout(self._timeout_s):
                found: list[Scores] | None = await response
        except TimeoutError:
            response.cancel()
            return [self.none(TIMEOUT) for _ in texts]
        except BackPressureError:
            return [self.none(BUSY) for _ in texts]
        except Exception as error:  # noqa: BLE001  whatever became of them, the text is there
            logger.warning("the scorers cannot be asked: %s", type(error).__name__)
            return [self.none(FAILED) for _ in texts]
        return [self.none(FAILED) for _ in texts] if found is None else found


def asking(handle: DeploymentHandle) -> MakeScoring:
    return partial(AskedScoring, handle)


def identity_of(spec: BundleSpec) -> str:
    """A digest of a bundle's scorers: their specifications and the hashes of their files."""
    return hashlib.sha256(json.dumps([spec.scorers, spec.scorer_files], sort_keys=True).encode()).hexdigest()


def _loaded(files: Snapshot, *, device: str, code: bool) -> tuple[str, Any]:
    return identity_of(files.bundle.spec), load_scorers(files.inside, device=device, code=code)
