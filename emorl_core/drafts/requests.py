"""What a caller may ask about drafts -> a plan for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from emorl_core.asked import Messages
from emorl_core.drafts.plan import DraftsPlan, Wanted
from emorl_core.drafts.spread import spread
from emorl_core.requests import Requests
from emorl_core.types import Combine
from emorl_core.weights import ResolvedWeights

# Of the drawn texts, unless a caller says otherwise.
DRAWN = {"temperature": 0.7, "top_p": 0.9}


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
            max_sweep: most completions that it may ask for; counted before anything is made.
            request_id: what the ids of its requests begin with.
            sampling: the fields of `Sampling`, of the drawn texts; not given: temperature 0.7, top_p 0.9 and seed 0, so
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
        drawn = [(each, own) for own in wanted.samplings(settings, objectives) for each in alone]
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
        """Of the bundle's own profiles those with weights; learned ones would change the drafts of everybody else."""
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
