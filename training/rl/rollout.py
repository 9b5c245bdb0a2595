"""k samples per prompt and objective, or one greedy reply, through the engine that also serves requests.

The engine runs on the model that is being trained, so nothing is copied between a step and the next rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from emorl_core.engine.driver import Driver
from emorl_core.engine.engine import Engine
from emorl_core.engine.sequences import Job
from emorl_core.errors import EmorlError
from emorl_core.models.family import LaneModel
from emorl_core.text.tokenizer import Tokenizer
from emorl_core.types import Completion, Failure, Request, Sampling
from emorl_core.weights import BASE
from training.data.prompts import Prompt

# (index of the prompt in the step, objective, number of the sample) -> seed
SeedOf = Callable[[int, str, int], int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply. `ids` includes the end of sequence if the reply ended by itself."""

    ids: tuple[int, ...]
    text: str
    ended: bool  # by itself, not at the limit


@dataclass(frozen=True, slots=True)
class Replies:
    """`samples[objective][i]` are the replies to prompt i; an objective whose model failed is in `failures` instead."""

    samples: dict[str, list[list[Sample]]]
    failures: dict[str, EmorlError]


class Rollout:
    """Samples from one model with attached adapters."""

    def __init__(self, model: LaneModel, tokenizer: Tokenizer, *, slots: int) -> None:
        """slots: replies to sample concurrently."""
        self._model, self._tokenizer, self._slots = model, tokenizer, slots
        self._lanes = (BASE, *model.adapters)

    def sample(
        self, prompts: Sequence[Prompt], objectives: Sequence[str], k: int, sampling: Sampling, seed_of: SeedOf
    ) -> Replies:
        """k replies per prompt and objective, each with its own seed."""
        seeded = {
            (place, name): [_with_seed(sampling, seed_of(place, name, number)) for number in range(k)]
            for name in objectives
            for place in range(len(prompts))
        }
        return self._run(prompts, objectives, seeded)

    def greedy(self, prompts: Sequence[Prompt], objectives: Sequence[str], max_new_tokens: int) -> Replies:
        """One greedy reply per prompt and objective (which may be `base`)."""
        plain = Sampling(max_new_tokens=max_new_tokens, seed=0)
        wanted = {(place, name): [plain] for name in objectives for place in range(len(prompts))}
        return self._run(prompts, objectives, wanted)

    def _run(
        self, prompts: Sequence[Prompt], objectives: Sequence[str], wanted: dict[tuple[int, str], list[Sampling]]
    ) -> Replies:
        # A new engine each time: adapters have changed, so cached prompts are stale. A rollout must not depend on
        # earlier ones either, or a resumed run would differ in its last bits.
        engine = Engine(self._model, _no_text, self._lanes, slots=self._slots, prefill_cache_bytes=0)
        groups = []
        for (place, name), samplings in wanted.items():
            weights = tuple(float(lane == name) for lane in self._lanes)
            groups.append(
                [
                    Request(
                        f"{place} {number} {name}",
                        prompts[place].source,
                        weights,
                        sampling,
                        stream=False,
                        logprobs=False,
                        tag=(place, name, number),
                    )
                    for number, sampling in enumerate(samplings)
                ]
            )
        done: dict[tuple[int, str, int], Completion] = {}
        failed: dict[str, EmorlError] = {}
        for event in Driver(engine).ends(groups, Job()):
            if isinstance(event, Failure):
                _, name, _ = event.tag
                failed.setdefault(name, event.error)
            else:
                done[event.tag] = event
        samples: dict[str, list[list[Sample]]] = {name: [] for name in objectives if name not in failed}
        for (place, name), samplings in wanted.items():
            if name not in failed:
                replies = [self._sample(done[place, name, number]) for number in range(len(samplings))]
                samples[name].append(replies)
        return Replies(samples, failed)

    def _sample(self, completion: Completion) -> Sample:
        ended = bool(completion.token_ids) and completion.token_ids[-1] in self._model.facts.eos_token_ids
        return Sample(completion.token_ids, self._tokenizer.decode(completion.token_ids), ended)


def _no_text(ids: Sequence[int]) -> str:  # noqa: ARG001
    """Decodes each reply once, when it is complete; streaming text is not needed here."""
    return ""


def _with_seed(sampling: Sampling, seed: int) -> Sampling:
    return replace(sampling, seed=seed)
