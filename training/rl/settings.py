"""The settings of reinforcement learning, with the two presets of method.md section 2: `paper` and `default`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from emorl_core.kinds import Section
from training.config import is_default

Advantage = Literal["mean", "leave_one_out", "group_standardised"]
Transform = Literal["raw", "log", "standardised"]
Normalisation = Literal["sequence_sum", "sequence_mean", "token_mean"]
KLKind = Literal["none", "k3_in_loss", "k1_in_reward"]
StopRule = Literal["paper", "patience", "steps"]
Preset = Literal["default", "paper"]

# Reply tokens of one pass over groups of like length, padding included: enough rows to fill a product.
SORTED_TOKENS = 4096


class LoraSettings(Section):
    """One objective's adapter."""

    rank: int = Field(8, ge=1, le=1024)
    """Rank of the update (R)."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update: alpha / rank times B A."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the adapter's inputs dropped while gradients are computed. The same for all objectives."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Linear layers by the last part of their name (`q`, `v`, `wo`, ...), or all of them. Never the head."""
    save_as: Literal["float32", "bfloat16"] = Field("float32", exclude_if=is_default("float32"))
    """Number format of the adapters in the bundle. Training computes in float32 all the same; bfloat16 takes half the
    space, and rounds each weight by up to 0.4 %."""
    act_on: Literal["all", "reply"] = Field("all", exclude_if=is_default("all"))
    """`all`: every token. `reply`: activated LoRA, which begins where the reply does, so that all objectives share one
    reading of the prompt; decoder-only bases only, and a higher rank is advised."""


class KLSettings(Section):
    """The pull towards the frozen base. It is measured and logged whatever the kind."""

    kind: KLKind = "k1_in_reward"
    """`k1_in_reward`: log p - log p_base, summed over the reply, taken off its reward: in expectation the gradient of
    the KL of whole replies, exactly. `k3_in_loss`: Schulman's k3, exp(r) - r - 1 with r = log p_base - log p, as a term
    of the loss: less noise, but another gradient, that of each token's KL of the base from the policy, blind to what a
    token does to later ones. `none`: measured only."""
    coefficient: float = Field(0.05, ge=0)
    """Weight of the term, reward units per nat."""


class StopSettings(Section):
    """When an objective leaves the batch. `max_steps` holds under every rule."""

    rule: StopRule = "patience"
    """`paper`: std / mean of the last `window` validation rewards < `threshold`, where the base's own validation does
    not count; `patience`: `patience` validations in a row without an improvement larger than its standard error over
    the validation prompts; `steps`: `max_steps` only."""
    max_steps: int = Field(400, ge=1)
    """Optimiser steps at most."""
    window: int = Field(20, ge=2)
    """Validations that the paper's rule looks back on."""
    threshold: float = Field(0.015, gt=0)
    """The paper's rule stops below this std / mean."""
    patience: int = Field(8, ge=1)
    """Validations without a real improvement before `patience` stops."""
    check: Literal["validation", "epoch"] = "validation"
    """The rule is asked at every validation. Once it is met, the objective stops there (`validation`), or at the end of
    the pass over the training prompts that is under way, whatever later validations say (`epoch`)."""


class RlSettings(Section):
    """k-self-critical sequence training. Defaults are the preset `default`; `preset: paper` changes some."""

    prompts_per_step: int = Field(16, ge=1)
    """Prompts of one step (B). Every objective samples for the same ones."""
    drop_last: bool = Field(False, exclude_if=is_default(False))
    """What fills no whole step at the end of a pass over the training prompts: left out, so that every pass begins with
    a step of its own, or (false) followed by the first prompts of the next pass."""
    samples_per_prompt: int = Field(3, ge=2)
    """Replies sampled per prompt and objective (k)."""
    max_new_tokens: int = Field(64, ge=1)
    """Tokens of a reply at most, the end of sequence included."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Of sampling. The gradient is of log-probabilities at temperature 1, so other values train off-policy."""
    top_k: int = Field(0, ge=0)
    """Sample among the k likeliest tokens only; 0 is off. The gradient's log-probabilities are never truncated."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's step size; an objective may have its own."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0, linearly."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay on the adapter's factors."""
    max_grad_norm: float = Field(2.0, gt=0)
    """The gradient of each objective is scaled down to this L2 norm."""
    reward: Transform = "standardised"
    """What a score becomes before advantages: `raw`; `log` of the score clipped to [1e-4, 0.9999]; `standardised`, by
    the running mean and deviation of the objective's own scores."""
    joint_reward: Transform = "log"
    """The same for one adapter trained on all rewards at once, as `uniform` and `dynaopt` of `emorl evaluate` are.
    Their definition takes logs; where scores near 0 are common, those drown everything else."""
    advantage: Advantage = "leave_one_out"
    """Baseline among a prompt's k rewards: the mean of the others (`leave_one_out`, unbiased); their `mean` (the same
    times (k - 1) / k); the mean, and divided by their deviation (`group_standardised`: biased, since a prompt counts
    the more the less its replies differ)."""
    policy_loss: Normalisation = "sequence_sum"
    """How tokens are added up: `sequence_sum` sums a reply's tokens and averages replies, the gradient of the expected
    reward; `sequence_mean` averages both and `token_mean` averages over all tokens of the step: both biased, since the
    length that a reply is divided by is chosen by the policy too. A KL term of the loss is added up the same way."""
    kl: KLSettings = KLSettings()
    """The pull towards the base."""
    train_on: Literal["sampled", "reencoded"] = "sampled"
    """The ids that were sampled, or those that the tokenizer makes of the decoded text, and the end if one was."""
    train_end: bool = True
    """Whether the first end of sequence is part of the trained sequence, so that stopping is learned."""
    dropout_when_generating: bool = False
    """Whether LoRA dropout is on while sampling and validating too. Dropout of the base's own is always off."""
    gradient_source_tokens: int | None = Field(None, ge=1)
    """Prompt tokens read for log-probabilities, at most; null: the same encoding as for sampling."""
    validate_every: int = Field(8, ge=1)
    """Steps between validations."""
    validation_samples: int = Field(0, ge=0, exclude_if=is_default(0))
    """Replies sampled per validation prompt, at the temperature and top_k of training; 0: one greedy reply."""
    validation_prompts: int | None = Field(None, ge=2)
    """Validation prompts used, the first of the part; null: all."""
    stop: StopSettings = StopSettings()
    """When an objective is finished."""
    keep: Literal["best", "last"] = "best"
    """Which weights the bundle serves. The other ones are written beside them."""

    @model_validator(mode="after")
    def _fits(self) -> RlSettings:
        if self.gradient_source_tokens is not None and self.gradient_source_tokens < 2:
            raise ValueError("gradient_source_tokens must leave room for a token and the end of sequence")
        return self


class AdapterFit(Section):
    """Supervised steps of the adapters, all in lockstep. The loss is the mean over the tokens of the given replies;
    AdamW, whose learning rate rises over the warm-up and falls as a cosine to zero."""

    steps: int = Field(200, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(16, ge=1)
    """Pairs of every objective in a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's step size at its highest."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient of each objective is scaled down to this L2 norm."""


class ComputeSettings(Section):
    """Where and how the run computes. None of it changes what is trained, but for rounding."""

    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu` or `cuda`."""
    scorer_device: str = "auto"
    """Where scorers with models run: `auto`, `cpu`, `cuda`."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the gradient pass; parameters stay float32."""
    prompts_per_forward: int | None = Field(None, ge=1)
    """Prompts of one forward and backward pass (gradient accumulation); null: all of a step at once, or, for a
    decoder-only base, whose replies are sorted by length, as many as make about 4,096 reply tokens."""
    rollout_slots: int = Field(256, ge=1)
    """Replies sampled at once."""
    checkpoint_every: int = Field(8, ge=1)
    """Steps between checkpoints: what a killed run can lose."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides the JSON lines that are always written."""


# The published column of method.md section 2, as far as it can be reproduced; docs/training.md lists what is not.
PAPER: Mapping[str, Any] = {
    "drop_last": True,
    "top_k": 50,
    "reward": "log",
    "advantage": "mean",
    "policy_loss": "sequence_sum",
    # The published term is a constant times advantages that sum to zero: no gradient. It is measured, as always.
    "kl": {"kind": "none"},
    "train_on": "reencoded",
    "train_end": False,
    "dropout_when_generating": True,
    "validation_samples": 3,
    "gradient_source_tokens": 512,
    "weight_decay": 0.01,  # torch's default for AdamW, which the published code leaves alone
    "stop": {"rule": "paper", "check": "epoch", "max_steps": 5000},
    "keep": "last",
}
PRESETS: dict[Preset, Mapping[str, Any]] = {"default": {}, "paper": PAPER}


def with_preset(preset: Preset, given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's values, overridden by the recipe's; nested sections are merged key by key."""
    merged: dict[str, Any] = dict(PRESETS[preset])
    for key, value in given.items():
        below = merged.get(key)
        merged[key] = {**below, **value} if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
