"""A recipe: one YAML file that describes how to build a bundle. For an unknown key the error names the nearest known
one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from emorl_core.bundles.bundle import PROMPT, Name, Template
from emorl_core.config import key_of, reason_of
from emorl_core.errors import InvalidWeights, cut
from emorl_core.files.documents import read_yaml
from emorl_core.files.reading import Missing, Unreadable, is_folder
from emorl_core.kinds import Section, nearest
from emorl_core.scorers import parse_scorer
from emorl_core.weights import BASE, resolve
from training.config import RecipeError, Start, is_default
from training.data.sources import parse_source
from training.data.splits import FRACTIONS
from training.data.wording import ChatSettings
from training.recipe.adapter_start import AdapterStart
from training.recipe.evaluation import EvaluationSettings
from training.recipe.overrides import apply_override
from training.rl.settings import ComputeSettings, LoraSettings, Preset, RlSettings, with_preset
from training.warm_start.fit import FitSettings
from training.warm_start.scratch_t5 import ScratchSettings
from training.warm_start.warm_start import WarmStartSettings


class WarmStart(Start):
    """Supervised fine-tuning of the base before reinforcement learning, from exactly one of `hub`, `path` and
    `scratch`."""

    other = "scratch"

    scratch: ScratchSettings | None = None
    """A new model of this shape, with a tokenizer trained on the data."""
    sources: tuple[Any, ...] = ()
    """Data sets with replies to train on, without the prompts that `data` validates or tests on; none: the training
    part of `data`."""
    fit: FitSettings = FitSettings()
    """Training settings."""

    @field_validator("sources")
    @classmethod
    def _kinds(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _known_sources(value, "base.warm_start.sources")

    def settings(self, template: str, max_source_tokens: int, chat: ChatSettings | None = None) -> WarmStartSettings:
        """Settings for `training.warm_start.warm_start`, with the recipe's template or chat."""
        own = {name: getattr(self, name) for name in ("hub", "revision", "path", "scratch", "fit")}
        return WarmStartSettings(prompt_template=template, chat=chat, max_source_tokens=max_source_tokens, **own)


class BaseSettings(Start):
    """The frozen base model: exactly one of `hub`, `path` and `warm_start`."""

    other = "warm_start"

    warm_start: WarmStart | None = None
    """Fine-tune a model on replies first. `emorl warm-start` runs this stage alone."""


class DataSettings(Section):
    """The prompts and how they are split."""

    sources: tuple[Any, ...] = Field(min_length=1)
    """Data sets, each a mapping with `kind` (pair, psych8k, jsonl, ...); they are concatenated."""
    splits: dict[Literal["train", "validation", "test"], float] = Field(default_factory=lambda: dict(FRACTIONS))  # type: ignore[arg-type]
    """Fraction of the distinct prompts in each part; they sum to 1. No prompt and no dialogue is in two parts, and each
    source is split in these proportions. Your own data can name dialogues in an extra column `dialogue`."""
    split_by: str | None = None
    """Extra column to split by instead of the prompt: rows with the same value are in the same part (`key` of the
    synthetic data: the situation)."""
    seed: int = Field(0, ge=0)
    """Seed of the split, independent of the recipe's `seed`, so that several runs can share their test prompts."""
    max_prompts: int | None = Field(None, ge=3)
    """Maximum number of distinct prompts, from the start of the data; null: all."""

    @field_validator("sources")
    @classmethod
    def _kinds(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _known_sources(value, "data.sources")

    @field_validator("splits")
    @classmethod
    def _parts(cls, value: dict[str, float]) -> dict[str, float]:
        for part in ("train", "validation"):
            if value.get(part, 0.0) <= 0:
                raise ValueError(f"{part} must have a share above 0")
        return value


class ObjectiveSettings(Section):
    """One objective: its scorer, and its own values of adapter settings."""

    scorer: Any
    """A scorer's kind, or a mapping with `kind`; see docs/scorers.md."""
    description: str = ""
    """A short description for users, stored in the bundle."""
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of this objective; null: `rl.learning_rate`."""
    rank: int | None = Field(None, ge=1, le=1024)
    """LoRA rank of this objective; null: `lora.rank`."""
    alpha: float | None = Field(None, gt=0)
    """LoRA alpha of this objective; null: `lora.alpha`."""


class Recipe(Section):
    """The sections and keys of a recipe."""

    name: Name
    """Name of the bundle."""
    seed: int = Field(0, ge=0)
    """Seed of all random draws of the run."""
    base: BaseSettings
    """The frozen base model."""
    prompt_template: Template = "{prompt} [SEP] "
    """Template of every prompt; `{prompt}` is replaced by its text. Not allowed with `chat`. If a decoder-only base has
    neither, its chat template is used, or the plain prompt if it has none."""
    chat: ChatSettings | None = Field(None, exclude_if=is_default(None))
    """Use the base's chat template instead of `prompt_template`."""
    max_source_tokens: int = Field(128, ge=2)
    """Maximum length of a prompt in tokens, template included. A longer prompt is truncated in training and refused in
    serving."""
    data: DataSettings
    """The prompts and how they are split."""
    objectives: dict[Name, ObjectiveSettings] = Field(min_length=1)
    """Name to objective. Each has its own adapter; all are trained together."""
    preset: Preset = "default"
    """Defaults of `rl`: `default`, or `paper` for those of the published code."""
    lora: LoraSettings = LoraSettings()
    """Settings of the adapters."""
    adapter_start: AdapterStart | None = Field(None, exclude_if=is_default(None))
    """Supervised fine-tuning of the adapters before reinforcement learning; null: none, so they start without any
    effect."""
    rl: RlSettings = RlSettings()
    """Settings of reinforcement learning."""
    profiles: dict[Name, dict[str, float]] = Field(default_factory=dict)
    """Name to weights, stored in the bundle; empty: `balanced`, with equal weights."""
    default_profile: str | None = None
    """Profile for requests without weights; null: the first one."""
    compute: ComputeSettings = ComputeSettings()
    """Hardware and memory."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Settings of `emorl evaluate`."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("preset") in ("default", "paper"):
            given = values.get("rl") or {}
            if isinstance(given, Mapping):
                return {**values, "rl": with_preset(values["preset"], given)}
        return values

    @model_validator(mode="before")
    @classmethod
    def _no_template_beside_a_chat(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("chat") is not None:
            return {"prompt_template": PROMPT, **values}
        return values

    @property
    def words_prompts(self) -> bool:
        """Whether the recipe defines how prompts are presented to the base (see `training.pipeline.base.worded`)."""
        return self.chat is not None or "prompt_template" in self.model_fields_set

    @model_validator(mode="after")
    def _template_or_chat(self) -> Recipe:
        if self.chat is not None and self.prompt_template != PROMPT:
            raise ValueError("give at most one of prompt_template and chat")
        return self

    @field_validator("objectives")
    @classmethod
    def _scorers(cls, value: dict[str, ObjectiveSettings]) -> dict[str, ObjectiveSettings]:
        if BASE in value:
            raise ValueError(f"{BASE} is the bare model, which is always there; choose another name")
        for name, objective in value.items():
            parse_scorer(objective.scorer, where=f"objectives.{name}.scorer")
        return value

    @field_validator("adapter_start")
    @classmethod
    def _fitted_objectives(cls, value: AdapterStart | None, info: ValidationInfo) -> AdapterStart | None:
        objectives = info.data.get("objectives", {})
        for name in value.sources if value is not None and objectives else ():
            if name not in objectives:
                raise ValueError(f"sources.{name} is no objective{nearest(name, objectives)}")
        return value

    @field_validator("evaluation")
    @classmethod
    def _scorer_names(cls, value: EvaluationSettings, info: ValidationInfo) -> EvaluationSettings:
        for name in value.scorers:
            if name in info.data.get("objectives", {}):
                raise ValueError(f"scorers.{name} is an objective's name too; choose another, the table shows both")
        objectives = info.data.get("objectives", {})
        for name in value.sentences:
            if objectives and name not in objectives:
                raise ValueError(f"sentences.{name} is no objective{nearest(name, objectives)}")
        if value.sentences and (missing := [name for name in objectives if name not in value.sentences]):
            raise ValueError(f"sentences lacks {', '.join(missing)}; allowed: none, or one for every objective")
        return value

    @model_validator(mode="after")
    def _profiles(self) -> Recipe:
        for name, weights in self.profiles.items():
            try:
                resolve((BASE, *self.objectives), weights)
            except InvalidWeights as error:
                raise ValueError(f"profiles.{name}: {error.message}") from None
        if self.default_profile is not None and self.default_profile not in (self.profiles or {"balanced": {}}):
            raise ValueError(
                f"default_profile {self.default_profile!r} is unknown; profiles: "
                + ", ".join(self.profiles or ["balanced"])
            )
        return self

    def lora_of(self, objective: str) -> LoraSettings:
        """The adapter's settings, including the objective's own values."""
        own = self.objectives[objective]
        given = {key: value for key in ("rank", "alpha") if (value := getattr(own, key)) is not None}
        return self.lora.model_copy(update=given)

    def learning_rate_of(self, objective: str) -> float:
        own = self.objectives[objective].learning_rate
        return self.rl.learning_rate if own is None else own

    def restricted(self, names: Sequence[str]) -> Recipe:
        """The recipe with these objectives only; profiles that need others are omitted. Raises `RecipeError`."""
        for name in names:
            if name not in self.objectives:
                raise RecipeError(
                    f"objective {name!r} is not in the recipe; it has {', '.join(self.objectives)}", param="objective"
                )
        profiles = {profile: weights for profile, weights in self.profiles.items() if set(weights) <= {BASE, *names}}
        return self.model_copy(
            update={
                "objectives": {name: value for name, value in self.objectives.items() if name in names},
                "adapter_start": None if self.adapter_start is None else self.adapter_start.restricted(names),
                "profiles": profiles,
                "default_profile": self.default_profile if self.default_profile in profiles else None,
            }
        )


def _known_sources(value: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    for number, source in enumerate(value):
        parse_source(source, where=f"{where}.{number}")
    return value


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override (`rl.learning_rate=3e-4`) and validate. Raises `RecipeError`, `ScorerError` or `DataError`: one
    line that names the file, the key and what is allowed."""
    try:
        if is_folder(path):
            raise RecipeError(f"{path} is a folder; a recipe is a YAML file, see recipes/", param="recipe")
        raw = read_yaml(path, regular=False)
    except Missing:
        raise RecipeError(f"{path}: no such file; a recipe is a YAML file, see recipes/", param="recipe") from None
    except Unreadable as error:
        raise RecipeError(error.message, param="recipe") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: must be a mapping of keys, found {type(raw).__name__}", param="recipe")
    for override in overrides:
        apply_override(raw, override)
    return parse_recipe(raw, where=path.name)


def parse_recipe(raw: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Validate an already parsed recipe. Raises like `load_recipe`."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as fault:
        raise RecipeError(f"{where}: {_explain(fault)}", param=key_of(fault.errors()[0]["loc"])) from None


def _explain(fault: ValidationError) -> str:
    """The first error, in one line; the others are usually consequences of it."""
    errors = fault.errors(include_url=False)
    item = errors[0]
    path, message = key_of(item["loc"]), reason_of(item)
    if item["type"] == "missing":
        return f"{path} is missing"
    found = "" if isinstance(item["input"], (Mapping, list, tuple, Section)) else f" (found {cut(item['input'])})"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and item["type"] != "value_error" else ""
    return f"{path}: {message}{found}{more}" if path else f"{message}{found}"


__all__ = ["Recipe", "RecipeError", "load_recipe", "parse_recipe"]
