"""How each method answers: its lanes and their weights, which are searched if the method has any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from emorl_core.adapters.adapter import Adapter
from emorl_core.bundles.bundle import split_template
from emorl_core.types import Combine
from emorl_core.weights import BASE, ResolvedWeights, anchored, resolve
from training.data.prompts import Encode
from training.data.wording import ChatSettings, template_or_chat
from training.evaluation.methods.answers import Answers
from training.evaluation.methods.experiment import Experiment
from training.evaluation.methods.generators import MixGenerator, SoupGenerator
from training.evaluation.methods.per_prompt import predicted
from training.evaluation.methods.stages import StageName
from training.evaluation.methods.weight_choice import choose
from training.progress import Progress
from training.search.strategies.spaces import Point

SINGLE, BEST_OF, PER_PROMPT = "single:", "best-of:", "per-prompt:"
FRONTS = ("sentences", "weights", "probs", "emorl")  # methods that accept any weights of sum 1
INSTRUCTION = "instruction"  # the lane of `prompt-only`


@dataclass(frozen=True, slots=True)
class Method:
    """`needs`: the training that it shares with other methods; None: no training."""

    name: str
    description: str
    needs: StageName | None

    @property
    def seedless(self) -> bool:
        """Whether it gives the same replies with every seed: it neither trains nor samples."""
        return self.needs is None and not self.name.startswith(BEST_OF)


@dataclass(frozen=True, slots=True)
class Answering:
    """`echo`: weights to report in the cell; None: `vector`, which is used for every prompt."""

    vector: ResolvedWeights
    combine: Combine = "hidden"
    anchored: bool = False
    echo: Mapping[str, float] | None = None
    search: Mapping[str, Any] | None = None
    vectors: tuple[ResolvedWeights, ...] = ()  # one per held-out prompt, if weights differ by prompt


def adapters_of(method: Method, experiment: Experiment) -> tuple[str, ...]:
    """The adapters that a method uses from its stage."""
    if method.needs is None:
        return ()
    if method.needs != "adapters":
        return (method.needs,)
    if method.name.startswith(SINGLE):
        return (method.name.removeprefix(SINGLE),)
    return tuple(experiment.recipe.objectives)


def settled(
    method: Method,
    seed: int,
    experiment: Experiment,
    answers: Answers,
    adapters: Sequence[Adapter],
    progress: Progress,
) -> Answering:
    """Set the lanes of a method on `answers`, using `adapters`, and choose its weights.

    Raises `SearchError`, `ScorerError`, `RecipeError`: an instruction that leaves no room for a prompt.
    """
    if method.name == "prompt-only":
        answers.tell({INSTRUCTION: _told(experiment, experiment.recipe.evaluation.instruction)})
        return Answering(resolve(answers.lanes, {INSTRUCTION: 1.0}))
    if method.name == "sentences":
        sentences = experiment.recipe.evaluation.sentences
        answers.tell({name: _told(experiment, sentences[name]) for name in experiment.recipe.objectives})
        return _searched(method.name, seed, experiment, answers, tuple(experiment.recipe.objectives), progress)
    if not adapters:
        return Answering(resolve(answers.lanes, {BASE: 1.0}))
    if method.needs != "adapters" or method.name.startswith(SINGLE):
        return Answering(resolve(answers.lanes, {adapters[0].name: 1.0}))
    names = tuple(adapter.name for adapter in adapters)
    if method.name.startswith(PER_PROMPT):
        even = resolve(answers.lanes, dict.fromkeys(names, 1.0))
        if method.name == f"{PER_PROMPT}best":
            return Answering(even, echo={})
        said = predicted(experiment, answers, names, progress)
        return Answering(even, echo={}, search=said.search, vectors=said.vectors)
    if method.name == "soups":
        return _soup(experiment, answers, adapters, (1 / len(names),) * len(names))
    if method.name == "soups-raw":
        soups = SoupGenerator(answers, experiment.search, adapters)
        log = experiment.shared(seed) / f"search-{method.name}.jsonl"
        choice = choose(experiment, soups, log, cube=True, progress=progress)
        return _soup(experiment, answers, adapters, choice.point, choice.as_cost())
    # Best-of-n samples from the mix that also answers greedily, so they share one search.
    return _searched(method.name.removeprefix(BEST_OF), seed, experiment, answers, names, progress)


def _soup(
    experiment: Experiment,
    answers: Answers,
    adapters: Sequence[Adapter],
    point: Point,
    search: Mapping[str, Any] | None = None,
) -> Answering:
    answers.attach([SoupGenerator(answers, experiment.search, adapters).soup("soup", point)])
    weights = {adapter.name: weight for adapter, weight in zip(adapters, point, strict=True)}
    return Answering(resolve(answers.lanes, {"soup": 1.0}), echo=weights, search=search)


def _searched(
    name: str, seed: int, experiment: Experiment, answers: Answers, names: Sequence[str], progress: Progress
) -> Answering:
    """Weights over the lanes `names` for the method `name`."""
    ways: dict[str, Combine] = {"probs": "probs", "weights": "weights"}
    combine = ways.get(name, "hidden")
    on_base = name == "emorl-anchored"

    def mix(point: Point) -> ResolvedWeights:
        return (anchored if on_base else resolve)(answers.lanes, dict(zip(names, point, strict=True)))

    generator = MixGenerator(answers, experiment.search, mix, combine)
    log = experiment.shared(seed) / f"search-{name}.jsonl"
    choice = choose(experiment, generator, log, cube=on_base, progress=progress)
    return Answering(mix(choice.point), combine, on_base, search=choice.as_cost())


def _told(experiment: Experiment, sentence: str | None) -> Encode:
    """Prompts with an instruction: as the system message of a chat, or in front of the template."""
    assert sentence is not None  # such a method is left out
    recipe, tokenizer = experiment.recipe, experiment.workshop.tokenizer
    if recipe.chat is not None:
        return template_or_chat(recipe.prompt_template, ChatSettings(system=sentence), tokenizer)
    before, after = split_template(recipe.prompt_template)
    return partial(tokenizer.encode_prompt, before=f"{sentence} {before}", after=after)
