"""A Hugging Face sequence classifier on (prompt, response), with calibration: one logit or classes -> [0, 1].

A checkpoint without trained weights for its classification head is refused: the published coherence scorer had an
untrained head, and its scores were noise.
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from emorl_core.scorers.base import (
    Context,
    Scorer,
    ScorerConfig,
    ScorerError,
    batches,
    check_texts,
    clip,
    pick_device,
    quiet_loading,
)
from emorl_core.scorers.calibration import Calibration, expected, read_calibration, sigmoid, softmax

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST_PAIR = 512  # tokens, unless the configuration or the checkpoint sets a lower limit
Output = Literal["auto", "calibrated", "sigmoid", "clamp", "expected"]


class CrossEncoderConfig(ScorerConfig):
    """`output` decides how raw outputs become a score. `auto`: the probability of `label` if given; else the model's
    own `calibration.json` if present; else the sigmoid of one logit, or the second class's probability of two. `clamp`
    clips one logit to [0, 1] (as the published empathy scorer does: rewards do not differ beyond). `expected` takes
    ordered classes, worst first, as evenly spaced from 0 to 1."""

    kind: Literal["cross_encoder"] = "cross_encoder"
    model: str  # a folder or a hub id
    revision: str | None = None  # of a hub id; set it for reproducible runs
    output: Output = "auto"
    label: str | None = None  # score = this label's probability
    # Tokens of prompt and response together, the longer one truncated first; null: the checkpoint's limit, up to 512.
    max_length: int | None = Field(None, ge=8)
    batch_size: int = Field(32, ge=1)  # pairs per forward pass; affects speed, not scores

    def build(self, context: Context) -> Scorer:
        return CrossEncoder(self, context, name="cross_encoder")


class CrossEncoder:
    """A loaded classifier. The constructor raises `ScorerError` for a model whose scores would be meaningless."""

    def __init__(self, config: CrossEncoderConfig, context: Context, *, name: str) -> None:
        self.__name__ = name
        self.config = config
        self.device = pick_device(context.device)
        where = local_or_hub(config.model, context.base)
        self.model, self.tokenizer = load_classifier(where, config.revision)
        self.model.to(self.device).eval()
        self.max_length = pick_max_length(config.max_length, self.model, self.tokenizer, config.model)
        folder = Path(where)
        self.calibration = read_calibration(folder) if folder.is_dir() else None
        self.labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self.output = self._output()

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        check_texts(self.__name__, prompts, completions)
        raw = raw_outputs(
            self.model,
            self.tokenizer,
            prompts,
            completions,
            max_length=self.max_length,
            batch_size=self.config.batch_size,
        )
        return [self._score(row) for row in raw]

    def _score(self, row: Sequence[float]) -> float:
        if any(math.isnan(z) for z in row):
            return math.nan  # the check reports the index
        if self.output == "calibrated":
            assert self.calibration is not None
            return self.calibration.apply(row)
        if self.output == "sigmoid":
            return sigmoid(row[0])
        if self.output == "clamp":
            return clip(row[0])
        likely = softmax(row)
        if self.output == "expected":
            return expected(likely, [index / (len(row) - 1) for index in range(len(row))])
        return clip(likely[self.labels.index(self.output)])

    def _output(self) -> str:
        """The output mode, or the label whose probability is the score."""
        wanted, labels, model = self.config.output, self.labels, self.config.model
        if self.config.label is not None:
            if wanted != "auto":
                raise ScorerError(f"label and output: {wanted} exclude each other", param="label")
            if len(labels) < 2:
                raise ScorerError(f"label is given, but {model!r} has a single output", param="label")
            if self.config.label not in labels:
                raise ScorerError(
                    f"label {self.config.label!r} is not one of {model!r}'s: {', '.join(labels)}", param="label"
                )
            return self.config.label
        if wanted == "calibrated" or (wanted == "auto" and self.calibration is not None):
            return self._calibrated(self.calibration, model)
        if wanted == "auto":
            if len(labels) > 2:
                raise ScorerError(
                    f"{model!r} has {len(labels)} classes and no calibration: name a label "
                    f"({', '.join(labels)}), or output: expected where they are ordered, worst first",
                    param="label",
                )
            return "sigmoid" if len(labels) == 1 else labels[1]
        if (len(labels) == 1) != (wanted in ("sigmoid", "clamp")):
            raise ScorerError(
                f"output: {wanted} does not fit {model!r}, which has {len(labels)} output(s)", param="output"
            )
        return wanted

    def _calibrated(self, calibration: Calibration | None, model: str) -> str:
        if calibration is None:
            raise ScorerError(f"output: calibrated, but {model!r} has no calibration.json", param="output")
        if calibration.outputs_needed != len(self.labels):
            raise ScorerError(
                f"{model!r} has {len(self.labels)} output(s); its calibration.json is for {calibration.outputs_needed}",
                param="model",
            )
        return "calibrated"


def local_or_hub(model: str, base: Path | None) -> str:
    """A folder (relative to `base`) or a hub id. Raises `ScorerError` for a path that does not exist."""
    if not model.strip():
        raise ScorerError("model is empty; name a folder or a hub id", param="model")
    folder = Path(model).expanduser()
    if base is not None and not folder.is_absolute():
        folder = base / folder
    if folder.is_dir():
        return str(folder)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ScorerError(f"model {model!r} is not a folder", param="model")
    return model


def shown(where: str) -> str:
    """A hub id unchanged, or only the name of a folder, since its path means nothing on another machine."""
    folder = Path(where)
    return folder.resolve().name if folder.is_dir() else where


def load_classifier(where: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises `ScorerError` if it cannot be loaded, or its head has no trained weights."""
    from transformers import AutoModelForSequenceClassification

    model, tokenizer, missing = load_pretrained(AutoModelForSequenceClassification, where, revision)
    if missing:
        raise ScorerError(
            f"model {shown(where)!r} has no trained head: the checkpoint lacks "
            f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
            param="model",
        )
    return model, tokenizer


def load_pretrained(
    auto_class: Any, where: str, revision: str | None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """(model in float32, tokenizer, names of weights that the checkpoint lacks). safetensors only, no remote code.

    Raises `ScorerError`.
    """
    import torch
    from transformers import AutoTokenizer

    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
            model, info = auto_class.from_pretrained(
                where, revision=revision, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
            )
    except Exception as error:  # noqa: BLE001  transformers raises OSError, ValueError, KeyError, and others
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ScorerError(
            f"model {shown(where)!r} cannot be loaded: {type(error).__name__}: {reason}", param="model"
        ) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ScorerError(f"model {shown(where)!r}: its tokenizer has no padding token", param="model")
        tokenizer.pad_token = tokenizer.eos_token  # masked where it is padding
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, sorted(info["missing_keys"])


def pick_max_length(wanted: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """Raises `ScorerError` if the model has fewer positions than `wanted` tokens."""
    # Tokenizers without a limit have a huge number, and models with relative positions have none.
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(int(tokenizer.model_max_length), positions or int(tokenizer.model_max_length))
    if wanted is None:
        return min(limit, LONGEST_PAIR)
    if wanted > limit:
        raise ScorerError(f"max_length is {wanted}; {name!r} reads at most {limit} tokens", param="max_length")
    return wanted


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str], max_length: int
) -> list[dict[str, list[int]]]:
    """One unpadded encoding per pair, for training and scoring alike."""
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), list(responses), truncation="longest_first", max_length=max_length)
    return [{name: values[index] for name, values in encoded.items()} for index in range(len(prompts))]


def raw_outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    max_length: int,
    batch_size: int,
) -> list[list[float]]:
    """The classifier's logits, one row per pair, in the given order."""
    import torch

    pairs = encode_pairs(tokenizer, prompts, responses, max_length)
    rows: list[list[float]] = [[] for _ in pairs]
    with torch.inference_mode():
        for batch in batches([len(pair["input_ids"]) for pair in pairs], batch_size):
            padded = tokenizer.pad([pairs[index] for index in batch], return_tensors="pt").to(model.device)
            logits = model(**padded).logits.float().cpu()  # [batch, outputs]
            for index, row in zip(batch, logits.tolist(), strict=True):
                rows[index] = row
    return rows
