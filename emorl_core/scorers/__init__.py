"""Scorers with the signature of TRL's reward functions, one file each, and their registry.

A scorer is `(prompts: list[str], completions: list[str], **columns) -> list[float]`, every number in [0, 1].
`build_scorer` returns scorers whose results are verified at every call (`checked`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from emorl_core.kinds import parse_spec
from emorl_core.scorers.base import Checked, Context, Scorer, ScorerConfig, ScorerError, checked
from emorl_core.scorers.callable import CallableConfig
from emorl_core.scorers.coherence import CoherenceConfig
from emorl_core.scorers.contrast import ContrastConfig
from emorl_core.scorers.cross_encoder import CrossEncoderConfig
from emorl_core.scorers.diversity import DiversityConfig
from emorl_core.scorers.edit_rate import EditRateConfig
from emorl_core.scorers.fluency import FluencyConfig
from emorl_core.scorers.guards import LengthConfig, RepetitionConfig
from emorl_core.scorers.judge import JudgeConfig
from emorl_core.scorers.lexical.scorers import LexicalEmpathyConfig, LexicalFluencyConfig, LexicalReflectionConfig
from emorl_core.scorers.perplexity import PerplexityConfig
from emorl_core.scorers.product import ProductConfig
from emorl_core.scorers.specificity import SpecificityConfig

__all__ = [
    "SCORERS",
    "Checked",
    "Context",
    "Scorer",
    "ScorerConfig",
    "ScorerError",
    "build_scorer",
    "checked",
    "parse_scorer",
    "parts_of",
]

# kind -> its configuration, whose `build` is the factory.
SCORERS: dict[str, type[ScorerConfig]] = {
    "cross_encoder": CrossEncoderConfig,
    "perplexity": PerplexityConfig,
    "judge": JudgeConfig,
    "fluency": FluencyConfig,
    "coherence": CoherenceConfig,
    "specificity": SpecificityConfig,
    "diversity": DiversityConfig,
    "edit_rate": EditRateConfig,
    "length": LengthConfig,
    "repetition": RepetitionConfig,
    "callable": CallableConfig,
    "product": ProductConfig,
    "contrast": ContrastConfig,
    "lexical_reflection": LexicalReflectionConfig,
    "lexical_empathy": LexicalEmpathyConfig,
    "lexical_fluency": LexicalFluencyConfig,
}


def parse_scorer(spec: object, *, where: str = "scorer") -> ScorerConfig:
    """A kind's name, or a mapping such as `{kind: cross_encoder, model: scorers/reflection}` -> its configuration.

    Nothing is loaded. Raises `ScorerError`; for an unknown kind or key it names the nearest known one.
    """
    return parse_spec(SCORERS, spec, where=where, error=ScorerError)


def parts_of(config: ScorerConfig, *, where: str = "scorer") -> Iterator[ScorerConfig]:
    """A scorer's configuration and those of all scorers within it. Raises `ScorerError` for an invalid one."""
    yield config
    for number, part in enumerate(config.parts):
        yield from parts_of(parse_scorer(part, where=f"{where}.of.{number}"), where=f"{where}.of.{number}")


def build_scorer(spec: object, context: Context | None = None, *, where: str = "scorer") -> Checked:
    """Parse, load and wrap. Raises `ScorerError`; messages start with the field's name below `where`."""
    context = context or Context()

    def part(spec: object, where: str) -> Checked:
        return build_scorer(spec, context, where=where)

    return checked(parse_scorer(spec, where=where).build(replace(context, part=part)))
