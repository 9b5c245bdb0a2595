"""Supervised fine-tuning of a model, with an encoder or without, on prompts and replies, with transformers' trainer.

The order of the examples is planned before the first step from the seed alone, in batches of similar length. A resumed
run continues at the same example with the same optimiser and random state, so on a CPU its result is bit-identical.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from emorl_core.files.writing import follow_umask
from emorl_core.kinds import Section
from emorl_core.scorers.base import quiet_transformers
from training.progress import FitProgress
from training.seeds import derive
from training.warm_start.errors import FitError
from training.warm_start.examples import NO_LABEL, Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, list[int]]  # one example of a batch, by the names of the model's arguments
_NEIGHBOURS = 50  # batches whose examples are sorted by length together
_STATE = "trainer_state.json"  # transformers writes it last into a checkpoint


class FitSettings(Section):
    """Training settings. AdamW; linear warmup, then cosine decay to 0."""

    steps: int = Field(1000, ge=1)
    """Number of optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Examples per step."""
    learning_rate: float = Field(3e-4, gt=0)
    """AdamW's peak learning rate."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear learning rate warmup from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    beta2: float = Field(0.98, gt=0, lt=1)
    """AdamW's beta2."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradient clipping: maximum L2 norm."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing, as a fraction of the target probability."""
    max_target_tokens: int = Field(128, ge=2)
    """Maximum reply length in tokens, including the end-of-sequence token; longer replies are truncated."""
    checkpoint_every: int = Field(500, ge=0)
    """Steps between checkpoints; 0: none."""
    seed: int = Field(0, ge=0)
    """Seed of the order of examples, of dropout and of a new model."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The result of a fit."""

    losses: tuple[float, ...]  # mean cross-entropy (nats per token) over successive intervals of steps
    resumed_at: int  # steps already done by the checkpoint


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: FitSettings,
    *,
    work: Path,
    device: str = "auto",
    progress: FitProgress | None = None,
) -> Fitted:
    """Train `model` in place. `work` holds the checkpoints; one left by a killed run is resumed.

    device: `auto` (CUDA if available) or `cpu`. Leaves the model in eval mode, and the process's random state
    unchanged.

    Raises `FitError`: a loss that is not finite.
    """
    lengths = [(len(example.ids), len(example.labels)) for example in examples]
    order = plan_order(lengths, settings.steps, settings.batch_size, settings.seed)
    rows = [
        {"input_ids": each.ids, "attention_mask": [1] * len(each.ids), "labels": each.labels}
        for each in (examples[index] for index in order)
    ]
    with quiet(), _own_randomness():
        trainer = _trainer(model, tokenizer, rows, settings, work, device, progress)
        checkpoint = last_checkpoint(work)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    model.eval()
    resumed_at = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    return Fitted(losses, resumed_at)


def plan_order(lengths: Sequence[tuple[int, int]], steps: int, batch_size: int, seed: int) -> list[int]:
    """`steps` * `batch_size` indices: shuffled passes, each divided into windows. A window is sorted by length into
    batches, which are shuffled. This gives little padding, without a trend from long to short."""
    order: list[int] = []
    number = 0
    while len(order) < steps * batch_size:
        rng = random.Random(derive(seed, "fit-order", number))
        one_pass = list(range(len(lengths)))
        rng.shuffle(one_pass)
        # A pass need not be a whole number of batches; its rest joins the next one, so no example is favoured.
        for start in range(0, len(one_pass), _NEIGHBOURS * batch_size):
            stretch = sorted(one_pass[start : start + _NEIGHBOURS * batch_size], key=lengths.__getitem__)
            batches = [stretch[first : first + batch_size] for first in range(0, len(stretch), batch_size)]
            rng.shuffle(batches)
            order += [index for batch in batches for index in batch]
        number += 1
    return order[: steps * batch_size]


def last_checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones left by a killed run are removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        return path
    return None


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    settings: FitSettings,
    work: Path,
    device: str,
    progress: FitProgress | None,
) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_gradient_norm,
        label_smoothing_factor=settings.label_smoothing,
        train_sampling_strategy="sequential",
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or settings.steps,
        save_total_limit=2,
        logging_steps=max(1, settings.steps // 100),
        seed=derive(settings.seed, "trainer") % 2**32,  # numpy accepts no larger seed
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
    )
    # The library's collator builds decoder inputs; it needs a padding token, which decoder-only models often lack.
    seq2seq = model.config.is_encoder_decoder
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model) if seq2seq else _padded,
        callbacks=[_watch(progress)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _padded(rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch of sequences, padded on the right."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    filling = {"input_ids": 0, "attention_mask": 0, "labels": NO_LABEL}
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in filling.items()
    }


def _watch(progress: FitProgress | None) -> Any:
    """The trainer's callback: reports progress, and stops at a loss that is not finite."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        loss = math.nan

        def on_save(self, args: Any, *_: Any, **__: Any) -> None:
            follow_umask(Path(args.output_dir))

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if progress is not None:
                progress(state.global_step, state.max_steps, self.loss)

        def on_log(self, args: Any, state: Any, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            self.loss = float(logs["loss"])
            if not math.isfinite(self.loss) or not math.isfinite(float(logs.get("grad_norm", 0.0))):
                raise FitError(
                    f"the loss is not finite at step {state.global_step}; lower learning_rate ({args.learning_rate:g})",
                    param="learning_rate",
                )

    return Watch()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence messages of the trainer and accelerate, which are for their own developers; ours go through
    `progress`."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The trainer seeds Python, numpy and torch; restore the caller's random states afterwards."""
    import numpy as np
    import torch

    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
