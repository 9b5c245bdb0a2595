"""The supervised stage before reinforcement learning: trains a base to answer prompts. It starts from a hub id, a
folder, or from scratch with a tokenizer trained on the data, uses transformers' trainer, and writes a standard Hugging
Face folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from emorl_core.bundles.bundle import PROMPT, Template, hub_folder
from emorl_core.errors import BundleError, UnsupportedModel, one_line
from emorl_core.files.writing import appearing
from emorl_core.kinds import Section
from emorl_core.text.tokenizer import load_tokenizer
from training.config import Start, is_default
from training.data.records import Record
from training.data.wording import ChatSettings
from training.progress import FitProgress
from training.warm_start.errors import FitError
from training.warm_start.examples import make_examples, wording_of
from training.warm_start.fit import FitSettings, fit, quiet
from training.warm_start.scratch_t5 import ScratchSettings, new_model
from training.warm_start.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECEIPT = "warm_start.json"


class WarmStartSettings(Start):
    """Which model to fine-tune and how: exactly one of `hub`, `path` and `scratch`."""

    other = "scratch"

    scratch: ScratchSettings | None = None
    """A new model of this shape, with a tokenizer trained on the data."""
    prompt_template: Template
    """Template of every prompt; `{prompt}` is replaced by its text. Its other words are single tokens of a new
    tokenizer."""
    chat: ChatSettings | None = Field(None, exclude_if=is_default(None))
    """Use the base's chat template instead of `prompt_template`."""
    max_source_tokens: int = Field(128, ge=2)
    """Maximum length of a prompt in tokens, template included; longer ones are truncated."""
    fit: FitSettings = FitSettings()
    """Training settings."""


def warm_start(
    records: Sequence[Record],
    out: Path,
    settings: WarmStartSettings,
    *,
    base: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: FitProgress | None = None,
) -> Path:
    """Train on the records' prompts and replies and write the model and its tokenizer to the folder `out`.

    Intermediate state is stored in `.<out>.partial`: a call with the same settings and data resumes from it, any other
    call starts anew. Nothing appears at `out` before everything is done. `base`: base of a relative `path`.

    Raises `FitError`: `out` exists, a record without a reply, a checkpoint that cannot be loaded, a loss that is not
    finite. `BundleError`: a chat without a chat template. `RecipeError`: a template beyond `max_source_tokens`.
    """
    check_target(out, overwrite)
    pairs = wrapped_pairs(records, settings.prompt_template)
    fingerprint = fingerprint_of(settings, pairs)
    model, tokenizer = _start(settings, records, base)
    work = partial_folder(out, fingerprint)
    unwrapped = [(record.prompt, reply) for record, (_, reply) in zip(records, pairs, strict=True)]
    found = make_examples(
        model,
        wording_of(model, tokenizer, settings.prompt_template, settings.chat),
        unwrapped,
        max_source_tokens=settings.max_source_tokens,
        max_target_tokens=settings.fit.max_target_tokens,
    )
    fitted = fit(model, tokenizer, found.examples, settings.fit, work=work, device=device, progress=progress)
    receipt = {
        "settings": settings.model_dump(mode="json", exclude={"path"}),
        "pairs": len(pairs),
        "fingerprint": fingerprint,
        "parameters": model.num_parameters(),
        "cut": {"sources": found.cut_sources, "targets": found.cut_targets},
        "losses": [round(loss, 4) for loss in fitted.losses],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    with quiet(), appearing(out, replace=overwrite) as temporary:
        model.cpu().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    return out


def check_target(out: Path, overwrite: bool) -> None:
    """Raises `FitError` if `out` exists and must not be overwritten."""
    if out.exists() and not overwrite:
        raise FitError(f"out is {out.name!r}, which exists; name a new folder or pass overwrite", param="out")


def wrapped_pairs(records: Sequence[Record], template: str) -> list[tuple[str, str]]:
    """(wrapped prompt, reply) of every record. Raises `FitError` if there is no record, or for one without a reply."""
    if not records:
        raise FitError("there is no pair of prompt and reply to train on", param="data")
    pairs = []
    for number, record in enumerate(records):
        if record.response is None:
            raise FitError(f"{record.where or f'record {number}'} has no reply; supervised training needs one")
        pairs.append((template.replace(PROMPT, record.prompt), record.response))
    return pairs


def fingerprint_of(settings: Section, pairs: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of settings and data; an unfinished run is resumed only by a call with the same one."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for pair in pairs:
        digest.update("\0".join(pair).encode(errors="surrogatepass") + b"\1")
    return digest.hexdigest()


def partial_folder(out: Path, fingerprint: str) -> Path:
    """The folder of an unfinished run for `out`; emptied first if it belongs to another run."""
    work = out.with_name(f".{out.name}.partial")
    stamp = work / "fingerprint"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        stamp.write_text(fingerprint, encoding="utf-8")
    return work


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a folder, in float32, and its tokenizer; safetensors only.

    Raises `FitError` with the reason in one line.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from emorl_core.models.config import read_config, refuse_quantised
    from emorl_core.models.registry import family_of
    from emorl_core.scorers.base import quiet_loading

    try:
        config = read_config(folder)
        refuse_quantised(config)
        task = family_of(config).adapter_task
        with quiet_loading():
            tokenizer = load_tokenizer(folder)
            kind = AutoModelForSeq2SeqLM if task == "SEQ_2_SEQ_LM" else AutoModelForCausalLM
            model = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    except (BundleError, UnsupportedModel) as error:
        raise FitError(f"base: {error.message}", param="base") from None
    except (OSError, ValueError, KeyError) as error:
        raise FitError(f"base {folder.name!r} cannot be loaded: {one_line(error)}", param="base") from None
    return model, tokenizer


def _folder(settings: WarmStartSettings, base: Path | None) -> Path:
    """The folder of the checkpoint to start from. Raises `FitError`, `BundleError`."""
    if settings.hub is not None:
        return hub_folder(settings.hub, settings.revision)
    folder = (base or Path()) / str(settings.path)
    if not folder.is_dir():
        raise FitError(f"base {folder.name!r} cannot be loaded: there is no such folder", param="base")
    return folder


def _start(
    settings: WarmStartSettings, records: Sequence[Record], base: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if settings.scratch is None:
        return load_checkpoint(_folder(settings, base))
    tokenizer = tokenizer_for(records, settings.scratch, settings.prompt_template, settings.max_source_tokens)
    return new_model(settings.scratch, tokenizer, settings.fit.seed), tokenizer


def tokenizer_for(
    records: Sequence[Record], scratch: ScratchSettings, template: str, max_source_tokens: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a new model, trained on prompts and replies. Words of the template are single tokens."""
    texts = [text for record in records for text in (record.prompt, record.response or "")]
    words = dict.fromkeys(template.replace(PROMPT, " ").split())
    return train_tokenizer(
        texts, vocab_size=scratch.vocab_size, whole_tokens=tuple(words), model_max_length=max_source_tokens
    )
