"""What a caller may ask about drafts -> a plan for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from emorl_core.asked import Messages
from emorl_core.drafts.plan import DraftsPlan, Wanted
from emorl_core.drafts.spread import spread
from emorl_core.engine.intake import draw_seed
from emorl_core.requests import Requests
from emorl_core.types import Combine


class DraftsRequests(Requests):
    """Makes plans for drafts, too."""

    def drafts_plan(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        wanted: Wanted | None = None,
        combine: Combine = "hidden",
        attribution: bool | None = None,
        max_sweep: int | None = None,
        request_id: str | None = None,
        **sampling: Any,
    ) -> DraftsPlan:
        """Drafts to choose from, checked in full and not begun: one prompt or chat under a spread of weights.

        Args:
            wanted: how many drafts, and out of how many; none given: three, as `Wanted` has it.
            attribution: split each draft over the objectives; None: where `combine` can be split.
            max_sweep: most completions (weights times seeds) that it may ask for; counted before anything is made.
            request_id: what the ids of its requests begin with.
            sampling: the fields of `Sampling`.

        Raises `InvalidRequest` and its kinds.
        """
        wanted = wanted or Wanted()
        settings = self._sampling(**sampling)
        wanted.check(greedy=settings.greedy, most=max_sweep)
        seed = draw_seed() if settings.seed is None else settings.seed
        settings = replace(settings, seed=seed)
        asked = self._reader.read(prompt, messages, "prompt")
        default = self.spec.default_profile
        profile = None if default is None or default in self._predictors else self.resolve()
        vectors = [
            profile if profile is not None and weights == profile.as_dict() else self.resolve(weights)
            for weights in spread(self.objectives, wanted.candidates, None if profile is None else profile.as_dict())
        ]
        seeds = [each for each in wanted.seeds_from(seed) for _ in vectors]
        sweep = self._sweep(
            [asked],
            vectors * wanted.seeds,
            settings,
            combine,
            prefix=request_id,
            seeds=seeds,
            logprobs=True,
            attribution=combine == "hidden" if attribution is None else attribution,
        )
        return DraftsPlan(sweep, wanted, self.lanes)
