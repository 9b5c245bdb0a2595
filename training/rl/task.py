"""The input of a training: a model, prompts in order, and the adapters to train. Independent of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from emorl_core.models.family import TrainableModel
from emorl_core.scorers import Checked
from emorl_core.text.tokenizer import Tokenizer
from training.data.prompts import Prompt
from training.rl.given import Given
from training.rl.rewards import RewardMix
from training.rl.rollout import Sample
from training.rl.settings import ComputeSettings, LoraSettings, RlSettings
from training.seeds import derive


@dataclass(frozen=True, slots=True)
class Goal:
    """One adapter to train. `mix` weights the rewards of its scorers."""

    scorers: Mapping[str, Checked]
    mix: RewardMix
    lora: LoraSettings
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Task:
    """`goals`: by adapter name. `fingerprint` identifies recipe and data, so that a run only resumes its own
    checkpoints.

    invocation: the tokens of the prompt from which adapters act; None: they act everywhere. joint: one adapter has
    several scorers, so the log has each one's score and weight. given: replies on which the adapters are fitted first.
    """

    goals: Mapping[str, Goal]
    model: TrainableModel
    tokenizer: Tokenizer
    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    fingerprint: dict[str, str]
    seed: int
    rl: RlSettings
    compute: ComputeSettings
    dropout: float  # of all adapters
    invocation: tuple[int, ...] | None = None
    joint: bool = False
    given: Given | None = None

    def trained_ids(self, sample: Sample) -> tuple[int, ...]:
        """The tokens of a reply for which gradients are computed."""
        ids = sample.ids
        if self.rl.train_on == "reencoded":
            end = ids[-1:] if sample.ended else ()
            ids = (*self.tokenizer.encode_reply(sample.text), *end)[: self.rl.max_new_tokens]
        if not self.rl.train_end and ids and ids[-1] in self.model.facts.eos_token_ids:
            ids = ids[:-1]
        return ids


class Order:
    """The prompts of each step: consecutive shuffled passes over the training prompts, without gaps, or (`drop_last`)
    each without an incomplete last step.

    A pure function of (seed, step), so that a resumed run continues with the same prompts.
    """

    def __init__(self, size: int, per_step: int, seed: int, *, drop_last: bool = False) -> None:
        """size: training prompts; per_step: prompts of a step. Raises `ValueError` for passes without a step."""
        if drop_last and size < per_step:
            raise ValueError(f"{size} prompts fill no step of {per_step}")
        self.size, self.per_step, self.seed = size, per_step, seed
        self._of_a_pass = size // per_step * per_step if drop_last else size
        self._epoch = -1
        self._shuffled: list[int] = []

    def step(self, number: int) -> list[int]:
        """Indices of the prompts of step `number`, counted from 0."""
        first = number * self.per_step
        return [self._at(position) for position in range(first, first + self.per_step)]

    def ends_pass(self, number: int) -> bool:
        """Whether step `number` uses the last prompt of a pass."""
        return (number + 1) * self.per_step // self._of_a_pass > number * self.per_step // self._of_a_pass

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self._of_a_pass)
        if epoch != self._epoch:
            self._shuffled = list(range(self.size))
            Random(derive(self.seed, "order", epoch)).shuffle(self._shuffled)
            self._epoch = epoch
        return self._shuffled[place]
