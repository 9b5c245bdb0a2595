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
    """The LoRA adapter of each objective."""

    rank: int = Field(8, ge=1, le=1024)
    """LoRA rank (R)."""
    alpha: float = Field(32.0, gt=0)
    """LoRA alpha; updates are scaled by alpha / rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """LoRA dropout in training, as a probability; the same for all objectives."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Target modules, by the last part of their name (`q`, `v`, `wo`, ...), or all linear layers. The language model's
    head is never adapted."""
    save_as: Literal["float32", "bfloat16"] = Field("float32", exclude_if=is_default("float32"))
    """Number format of the saved adapters. Training is in float32 either way; bfloat16 halves the size and rounds each
    weight by up to 0.4 %."""
    act_on: Literal["all", "reply"] = Field("all", exclude_if=is_default("all"))
    """Tokens the adapters apply to. `all`: prompt and reply. `reply`: activated LoRA, which starts at the reply, so
    that all objectives share one prefill of the prompt; decoder-only bases only, and best with a higher rank."""


class KLSettings(Section):
    """KL penalty towards the frozen base. The KL is logged in any case."""

    kind: KLKind = "k1_in_reward"
    """`k1_in_reward`: log p - log p_base, summed over the reply and subtracted from its reward; an unbiased gradient of
    the KL of whole replies. `k3_in_loss`: Schulman's k3 per token, exp(r) - r - 1 with r = log p_base - log p, added to
    the loss; less noise, but a different gradient, which ignores a token's effect on later ones. `none`: no penalty."""
    coefficient: float = Field(0.05, ge=0)
    """KL coefficient, in reward units per nat."""


class StopSettings(Section):
    """When training of an objective stops. `max_steps` applies under every rule."""

    rule: StopRule = "patience"
    """`patience`: after `patience` validations without an improvement larger than its standard error over the
    validation prompts. `paper`: when std / mean of the last `window` validation rewards is below `threshold`; the
    validation before training is not counted. `steps`: at `max_steps`."""
    max_steps: int = Field(400, ge=1)
    """Maximum number of optimiser steps."""
    window: int = Field(20, ge=2)
    """Number of validations that `paper` looks at."""
    threshold: float = Field(0.015, gt=0)
    """Limit of `paper` for std / mean."""
    patience: int = Field(8, ge=1)
    """Number of validations that `patience` waits for an improvement."""
    check: Literal["validation", "epoch"] = "validation"
    """When a rule that was met takes effect: at once (`validation`), or at the end of the current pass over the
    training prompts, whatever later validations say (`epoch`). The rule is evaluated at every validation."""


class RlSettings(Section):
    """k-self-critical sequence training. The defaults are those of `preset: default`."""

    prompts_per_step: int = Field(16, ge=1)
    """Prompts per step (B); all objectives use the same ones."""
    drop_last: bool = Field(False, exclude_if=is_default(False))
    """Whether to drop the incomplete last step of a pass over the training prompts. If false, it is filled with the
    first prompts of the next pass."""
    samples_per_prompt: int = Field(3, ge=2)
    """Replies sampled per prompt and objective (k)."""
    max_new_tokens: int = Field(64, ge=1)
    """Maximum reply length in tokens, including the end-of-sequence token."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Sampling temperature. The loss uses log-probabilities at temperature 1, so any other value is off-policy."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling; 0: off. The loss always uses untruncated log-probabilities."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's learning rate; an objective may have its own."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear learning rate warmup from 0; constant afterwards."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay, on the LoRA matrices A and B."""
    max_grad_norm: float = Field(2.0, gt=0)
    """Gradient clipping: maximum L2 norm per objective."""
    reward: Transform = "standardised"
    """Reward from a score: `raw`: the score; `log`: log of the score clipped to [1e-4, 0.9999]; `standardised`: (score
    - mean) / standard deviation, both running over the objective's own scores."""
    joint_reward: Transform = "log"
    """The same for methods of `emorl evaluate` that train one adapter on all rewards (`uniform`, `dynaopt`). They are
    defined with `log`, which lets scores near 0 dominate where these are common."""
    advantage: Advantage = "leave_one_out"
    """Advantage among a prompt's k rewards: `leave_one_out`: reward - mean of the others, unbiased; `mean`: reward -
    mean, which is (k - 1) / k times that; `group_standardised`: `mean` divided by the standard deviation, biased
    towards prompts whose replies score alike."""
    policy_loss: Normalisation = "sequence_sum"
    """How token losses are aggregated: `sequence_sum`: sum over a reply, mean over replies, the gradient of the
    expected reward; `sequence_mean`: mean over a reply, mean over replies; `token_mean`: mean over all tokens of a
    step. The means are biased, since the policy chooses the lengths. `k3_in_loss` is aggregated in the same way."""
    kl: KLSettings = KLSettings()
    """KL penalty towards the base."""
    train_on: Literal["sampled", "reencoded"] = "sampled"
    """Token ids to train on: those that were `sampled`, or `reencoded` ones from the decoded text."""
    train_end: bool = True
    """Whether the end-of-sequence token is trained on."""
    dropout_when_generating: bool = False
    """Whether LoRA dropout is also on while sampling and validating. The base's own dropout is always off."""
    gradient_source_tokens: int | None = Field(None, ge=1)
    """Maximum prompt length in tokens when computing log-probabilities; null: the same prompt ids as in sampling."""
    validate_every: int = Field(8, ge=1)
    """Steps between validations."""
    validation_samples: int = Field(0, ge=0, exclude_if=is_default(0))
    """Replies sampled per validation prompt, with training's temperature and top_k; 0: one greedy reply."""
    validation_prompts: int | None = Field(None, ge=2)
    """Number of validation prompts to use, from the start of that part; null: all."""
    stop: StopSettings = StopSettings()
    """When training of an objective stops."""
    keep: Literal["best", "last"] = "best"
    """Which adapters the bundle serves: of the best validation, or of the last step. The others are saved as well."""

    @model_validator(mode="after")
    def _fits(self) -> RlSettings:
        if self.gradient_source_tokens is not None and self.gradient_source_tokens < 2:
            raise ValueError("gradient_source_tokens must leave room for a token and the end of sequence")
        return self


class AdapterFit(Section):
    """Supervised fine-tuning of the adapters, all in lockstep, with the mean cross-entropy over the reply tokens.
    AdamW; linear warmup, then cosine decay to 0."""

    steps: int = Field(200, ge=1)
    """Number of optimiser steps."""
    batch_size: int = Field(16, ge=1)
    """Pairs per step and objective."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's peak learning rate."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear learning rate warmup from 0."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping: maximum L2 norm per objective."""


class ComputeSettings(Section):
    """Hardware and memory. These settings change results only by rounding."""

    device: str = "auto"
    """Device for training: `auto` (CUDA if available), `cpu` or `cuda`."""
    scorer_device: str = "auto"
    """Device for scorers that are models: `auto`, `cpu` or `cuda`."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the forward and backward pass; parameters stay in float32."""
    prompts_per_forward: int | None = Field(None, ge=1)
    """Micro-batch size in prompts (gradient accumulation). null: the whole step, or for a decoder-only base, whose
    replies are sorted by length, as many prompts as give about 4,096 reply tokens."""
    rollout_slots: int = Field(256, ge=1)
    """Maximum number of replies sampled concurrently."""
    checkpoint_every: int = Field(8, ge=1)
    """Steps between checkpoints."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Experiment trackers that metrics are sent to, besides `log.jsonl`."""


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
