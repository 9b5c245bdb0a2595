"""What a training works on: a recipe, a model, prompts, scorers, and which adapters there are to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emorl_core.models.family import TrainableModel
from emorl_core.tokenizer import Tokenizer
from training.data.prompts import Prompt
from training.recipe.recipe import Recipe
from training.rl.rewards import FixedMix, RewardMix
from training.rl.rollout import Sample
from training.rl.settings import LoraSettings
from training.scorers import Checked


@dataclass(frozen=True, slots=True)
class Joint:
    """One adapter for all scorers of a task; it is called `name`."""

    name: str
    mix: RewardMix


@dataclass(frozen=True, slots=True)
class Task:
    """`fingerprint` names the recipe and the data: a run resumes only what it began.

    Each scorer has an adapter of its own, or with `joint` all share one.
    """

    recipe: Recipe
    model: TrainableModel
    tokenizer: Tokenizer
    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    scorers: dict[str, Checked]
    fingerprint: dict[str, str]
    joint: Joint | None = None

    def goals(self) -> dict[str, tuple[Mapping[str, Checked], RewardMix]]:
        """Adapter -> its scorers, and how their rewards are added up."""
        if self.joint is not None:
            return {self.joint.name: (self.scorers, self.joint.mix)}
        return {name: ({name: scorer}, FixedMix({name: 1.0})) for name, scorer in self.scorers.items()}

    def lora_of(self, adapter: str) -> LoraSettings:
        return self.recipe.lora if self.joint is not None else self.recipe.lora_of(adapter)

    def learning_rate_of(self, adapter: str) -> float:
        return self.recipe.rl.learning_rate if self.joint is not None else self.recipe.learning_rate_of(adapter)

    def trained_ids(self, sample: Sample) -> tuple[int, ...]:
        """The tokens of a reply that a gradient is taken of."""
        settings, ids = self.recipe.rl, sample.ids
        if settings.train_on == "reencoded":
            ids = tuple(self.tokenizer.encode_prompt(sample.text))[: settings.max_new_tokens]
        if not settings.train_end and ids and ids[-1] in self.model.facts.eos_token_ids:
            ids = ids[:-1]
        return ids
