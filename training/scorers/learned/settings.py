"""The settings of `emorl train-scorer`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from emorl_core.kinds import Spec
from emorl_core.scorers.passes import Dtype

DTYPE: Dtype = "bfloat16"  # in which frozen models of judges compute


class ScorerTraining(Spec):
    """How a scorer is trained."""

    encoder: str  # a folder or hub id of any Hugging Face encoder; of a causal language model for `fluency`, `states`
    revision: str | None = None  # of a hub id
    loss: Literal["pairwise", "margin", "classes", "fluency", "states"]
    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    batch_size: int = Field(32, ge=2)  # pairs of prompt and reply per step; those of one prompt stay together
    prompts_per_epoch: int = Field(160, ge=1)  # prompts per epoch, equally many from each data set (`pairwise`)
    max_length: int = Field(128, ge=16)  # tokens of prompt and reply together
    margin: float = Field(1.0, gt=0)  # logits per level
    mismatched: int = Field(2, ge=0)  # replies of other prompts added to each prompt as the lowest level (`margin`)
    calibration: Literal["platt", "isotonic"] = "platt"  # for one logit; classes always use temperature scaling
    freeze_embeddings: bool = True  # half of a small encoder's parameters, and too many for a few thousand pairs
    freeze_layers: int = Field(0, ge=0)  # number of lowest layers that are frozen, which also saves time
    seed: int = Field(0, ge=0)  # splits, head, order and dropout
    device: str = "auto"
