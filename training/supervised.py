"""One LoRA adapter, supervised on replies that show its objective: peft on the frozen base, transformers' trainer.

A stand-in for reinforcement: it needs replies that are already good, and it is how a bundle is made without a scorer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from training.data.records import Record
from training.durable import appearing
from training.fit import FitSettings, Progress, fit, quiet
from training.hyperparameters import LoraSettings
from training.section import Section
from training.seeds import derive
from training.warmstart import check_target, fingerprint_of, load_checkpoint, partial_folder, wrapped_pairs

RECEIPT = "supervised.json"


class SupervisedSettings(Section):
    """An adapter and how it is fitted."""

    prompt_template: str = "{prompt} [SEP] "
    """Wraps every prompt, as in the base's own training."""
    max_source_tokens: int = Field(128, ge=2)
    """Tokens of the wrapped prompt; longer ones are cut."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    fit: FitSettings = FitSettings()
    """The fitting."""


def train_adapter(
    base: Path,
    records: Sequence[Record],
    out: Path,
    settings: SupervisedSettings,
    *,
    base_name: str = "base",
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Fit an adapter of the base in folder `base` on the records, and write it to `out` as a PEFT folder.

    Resumes like `warm_start`. `base_name` is what the adapter says it was trained on: a hub id, or a word; never a path
    of this machine. Raises `FitError`.
    """
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    check_target(out, overwrite)
    pairs = wrapped_pairs(records, settings.prompt_template)
    fingerprint = fingerprint_of(settings, pairs)
    model, tokenizer = load_checkpoint(str(base))
    work = partial_folder(out, fingerprint)
    lora = settings.lora
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
    )
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(derive(settings.fit.seed, "adapter"))
        adapted = get_peft_model(model, config)
    fitted = fit(
        adapted, tokenizer, pairs, settings.fit, work=work, max_source_tokens=settings.max_source_tokens, device=device,
        progress=progress,
    )  # fmt: skip
    receipt = {
        "settings": settings.model_dump(mode="json"),
        "pairs": len(pairs),
        "fingerprint": fingerprint,
        "losses": [round(loss, 4) for loss in fitted.losses],
    }
    # Not before: while it holds the real folder, peft finds the base's config there and does not ask the hub.
    adapted.peft_config["default"].base_model_name_or_path = base_name
    with quiet(), appearing(out, replace=overwrite) as temporary:
        adapted.cpu().save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's template of a model card, with nothing filled in
        (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    return out
