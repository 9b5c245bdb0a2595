"""A caller's request for drafts -> a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from emorl_core.asked import Messages
from emorl_core.drafts.plan import DraftsPlan, Wanted
from emorl_core.drafts.spread import spread
from emorl_core.requests import Requests
from emorl_core.types import Combine
from emorl_core.weights import ResolvedWeights

# Defaults for sampled texts.
DRAWN = {"temperature": 0.7, "top_p": 0.9}


class DraftsRequests(Requests):
    """Adds plans for drafts."""

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
        """A validated plan, not yet started, for drafts of one prompt or chat under a spread of weights.

        Args:
            wanted: how many drafts, out of how many texts; default: `Wanted()`.
            attribution: of each draft; None: where `combine` allows it.
            max_sweep: most completions; counted before anything is allocated.
            request_id: prefix of its requests' ids.
            sampling: fields of `Sampling` for the sampled texts. Defaults: temperature 0.7, top_p 0.9, and seed 0, so
                that the same request gives the same drafts.

        Raises `InvalidRequest` and its kinds.
        """
        wanted = wanted or Wanted()
        settings = self._sampling(**{**DRAWN, **sampling})
        objectives = len(self.objectives)
        wanted.check(greedy=settings.greedy, objectives=objectives, most=max_sweep)
        settings = replace(settings, seed=settings.seed or 0)
        asked = self._reader.read(prompt, messages, "prompt")
        likely = [(each, replace(settings, temperature=0.0)) for each in self._spread(wanted.candidates)]
        alone = [self.resolve({name: 1.0}) for name in self.objectives]
        drawn = [(each, own) for each in alone for own in wanted.samplings(settings, objectives)]
        vectors, samplings = zip(*likely, *drawn, strict=True)
        sweep = self._sweep(
            [asked],
            vectors,
            settings,
            combine,
            prefix=request_id,
            samplings=samplings,
            logprobs=True,
            attribution=combine == "hidden" if attribution is None else attribution,
        )
        return DraftsPlan(sweep, wanted, self.lanes)

    def _spread(self, count: int) -> list[ResolvedWeights]:
        """The bundle's own profiles with weights. Learned ones are left out, since they would change everybody's
        drafts."""
        profiles = {name: self.resolve(profile=name) for name in self.spec.profiles if name not in self._predictors}
        default = profiles.pop(self.spec.default_profile or "", None)
        known = [*([] if default is None else [default]), *profiles.values()]
        looked_at = spread(
            self.objectives,
            count,
            None if default is None else default.as_dict(),
            [each.as_dict() for each in profiles.values()],
        )
        return [
            next((each for each in known if each.as_dict() == weights), None) or self.resolve(weights)
            for weights in looked_at
        ]
