"""Trains a cross-encoder scorer, and evaluates it on unseen clients.

Three losses:
- `pairwise`: human replies against everything that should score lower (`training.scorers.learned.pairwise`), mean of
  -log σ(score gap). One logit, Platt-calibrated. Used for judges.
- `margin`: replies of the same prompt, ranked: mean of max(0, margin · (level gap) − (score gap)) over its pairs. One
  logit, Platt- or isotonic-calibrated. Every prompt gets `mismatched` top-level replies of *other* prompts as the
  lowest level: without them a model can rank by style alone, and a policy trained on it can ignore the client.
- `classes`: cross-entropy over the levels with class weights n / (classes · n_class). One logit per level,
  temperature-calibrated; the score is the expected level.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.files.writing import appearing
from emorl_core.scorers.base import ScorerError, checked, pick_device, quiet_loading
from emorl_core.scorers.calibration import Calibration, write_calibration
from emorl_core.scorers.cross_encoder import load_pretrained, local_or_hub, pick_max_length, shown
from emorl_core.scorers.words import prompt_key
from training.data.records import DataError, RecordSet
from training.progress import FitProgress
from training.scorers.exam.examine import ExamSettings, examine
from training.scorers.exam.material import Material, parts_of
from training.scorers.learned.courses import Course, GradedCourse, PairCourse
from training.scorers.learned.fitting import STATE_FILE, Fitting
from training.scorers.learned.readings import READINGS_FILE
from training.scorers.learned.report import write_card
from training.scorers.learned.settings import ScorerTraining

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_CLASSES = 20
# Part of every training; `emorl examine-scorer` runs a larger exam.
EXAM = ExamSettings(replies=20, graded=120, candidates=60, prompts=6)


@dataclass(frozen=True, slots=True)
class Trained:
    """The result: its folder and its figures (also in the folder's `training.json`)."""

    folder: Path
    report: dict[str, Any]


def train_scorer(
    config: ScorerTraining,
    data: RecordSet,
    out: Path,
    *,
    also: Sequence[RecordSet] = (),
    replies: Sequence[RecordSet] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: FitProgress | None = None,
    base: Path | None = None,
    exam: ExamSettings | None = None,
) -> Trained:
    """Split by dialogue or prompt, train, keep the epoch that is best on the validation part, calibrate on that part,
    run the exam on the test part, write `out`. Nothing appears at `out` before everything is done.

    Args:
        also: more graded sets, each with its own levels (`pairwise`).
        replies: sets of which only the human replies are used (`pairwise`).
        exam: the size of the exam; its seed is the training's.

    The state after each epoch is stored in `.<out>.partial`; `resume` continues from there to bit-identical results
    (CPU, same number of threads). Raises `ScorerError` or `DataError` before anything is written.
    """
    import torch

    check_target(out, resume=resume, overwrite=overwrite)
    if config.loss != "pairwise" and (also or replies):
        raise ScorerError(f"loss {config.loss} takes one data set; pairwise takes several", param="data")
    partial = partial_of(out)
    sets = [data, *also, *replies]
    parts = [parts_of(each, config.seed) for each in sets]
    levels = check_levels(config, parts[: 1 + len(also)])
    device = pick_device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model, tokenizer = _load_encoder(config, levels, base)
        model.to(device)
        course = _course(config, parts, levels, 1 + len(also))
        run = Fitting(config, model, tokenizer, course.lessons)
        fingerprint = {
            "config": config.model_dump(mode="json"),
            "data": [[each.sha256, len(each)] for each in sets],
            "graded": 1 + len(also),
        }
        if overwrite and not resume:
            shutil.rmtree(partial, ignore_errors=True)
        if resume:
            run.restore(partial / STATE_FILE, fingerprint)
        for epoch in range(run.done, config.epochs):
            run.epoch(epoch, progress)
            run.keep_if_best(course.after_epoch(run, epoch))
            run.save(partial, fingerprint)
    model.load_state_dict(run.best)
    calibration = course.calibration(run)
    exam = replace(exam or EXAM, seed=config.seed)
    report = {
        "loss": config.loss,
        "encoder": shown(config.encoder),
        "seed": config.seed,
        "levels": levels,
        "data": [
            {"name": each.name, "sha256": each.sha256, "records": len(each), "skipped": each.skipped, "graded": graded}
            for each, graded in zip(sets, [True] * (1 + len(also)) + [False] * len(replies), strict=True)
        ],
        "prompts": {part: sum(len(own[part].by_prompt) for own in parts) for part in parts[0]},
        "pairs": {part: sum(len(own[part].records) for own in parts) for part in parts[0]},
        "validation_by_epoch": run.qualities,
        "searches": course.lessons.searches,
        "epoch_kept": run.kept + 1,
        "test": course.figures(run, calibration),
        "exam": examine(checked(_AsTrained(run, calibration)), parts, exam).as_dict(),
        "settings": config.model_dump(mode="json", exclude={"encoder", "device"}),
    }
    _write(run, calibration, report, partial, out)
    return Trained(out, report)


class _AsTrained:
    """The scorer that will be written to the folder."""

    __name__ = "cross_encoder"

    def __init__(self, run: Fitting, calibration: Calibration) -> None:
        self._run, self._calibration = run, calibration

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:  # noqa: ARG002
        return [self._calibration.apply(row) for row in self._run.raw(prompts, completions)]


def _course(
    config: ScorerTraining, parts: Sequence[Mapping[str, Material]], levels: list[float], graded: int
) -> Course:
    if config.loss == "pairwise":
        return PairCourse(config, parts[:graded], parts[graded:])
    return GradedCourse(config, parts[0], levels)


def check_levels(config: ScorerTraining, sets: Sequence[Mapping[str, Material]]) -> list[float]:
    """The first set's levels, lowest first. Raises `DataError` if the data cannot train or evaluate a scorer."""
    for parts in sets:
        for part, material in parts.items():
            for record in material.records:
                if record.level is None:
                    where = record.where or "a record"
                    raise DataError(f"{where}: no level; a scorer is trained from graded pairs", param="data")
            graded = defaultdict(set)
            for record in material.records:
                graded[prompt_key(record.prompt) if config.loss == "margin" else ""].add(record.level)
            if not any(len(levels) > 1 for levels in graded.values()):
                where = (
                    "no prompt has replies of two levels" if config.loss == "margin" else "all replies have one level"
                )
                raise DataError(f"the {part} part has {len(material.records)} pairs, but {where}", param="data")
    levels = list(sets[0]["train"].scale)
    if config.loss == "classes":
        missing = set(levels) - {record.level for record in sets[0]["train"].records}
        if missing or len(levels) > MOST_CLASSES:
            why = f"level {min(missing):g} is not in the train part" if missing else f"{len(levels)} distinct levels"
            raise DataError(
                f"{why}; `classes` takes 2 to {MOST_CLASSES} levels, all of them in the train part", param="data"
            )
    return levels


def _load_encoder(
    config: ScorerTraining, levels: list[float], base: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder with a new head. Raises `ScorerError` if anything except the head is missing."""
    from transformers import AutoModelForSequenceClassification

    outputs = len(levels) if config.loss == "classes" else 1
    names = {0: "quality"} if outputs == 1 else {index: f"level {level:g}" for index, level in enumerate(levels)}
    where = local_or_hub(config.encoder, base)
    model, tokenizer, missing = load_pretrained(
        AutoModelForSequenceClassification,
        where,
        config.revision,
        num_labels=outputs,
        id2label=names,
        label2id={name: index for index, name in names.items()},
        ignore_mismatched_sizes=True,
    )
    inside = [name for name in missing if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name]
    if inside:
        name = shown(config.encoder)
        raise ScorerError(f"encoder {name!r}: the checkpoint lacks {inside[0]}", param="encoder")
    pick_max_length(config.max_length, model, tokenizer, shown(config.encoder))
    _freeze(model, config)
    return model, tokenizer


def _freeze(model: PreTrainedModel, config: ScorerTraining) -> None:
    import torch

    if config.freeze_embeddings or config.freeze_layers:
        model.get_input_embeddings().requires_grad_(False)
    stacks = [module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = max(stacks, key=len) if stacks else torch.nn.ModuleList()
    if config.freeze_layers >= max(1, len(layers)):
        raise ScorerError(
            f"freeze_layers is {config.freeze_layers}; the encoder has {len(layers)} layers and the "
            "highest must stay free",
            param="freeze_layers",
        )
    if config.freeze_layers:
        # Positions and norms of the embedding block feed the frozen layers; training them would require a backward
        # pass through those.
        for name, parameter in model.base_model.named_parameters():
            if ".embeddings." in f".{name}":
                parameter.requires_grad_(False)
        for layer in layers[: config.freeze_layers]:
            layer.requires_grad_(False)


def check_target(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises `ScorerError` if a run must not write there."""
    partial = partial_of(out)
    if out.exists() and not out.is_dir():
        raise ScorerError(f"{out.name!r} is a file; name a folder", param="out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ScorerError(f"{out.name!r} already holds something; overwrite replaces it", param="out")
    interrupted = any((partial / name).is_file() for name in (STATE_FILE, READINGS_FILE))
    if resume and not interrupted:
        raise ScorerError(f"resume: there is no interrupted run of {out.name!r}", param="resume")
    if interrupted and not (resume or overwrite):
        raise ScorerError(
            f"an interrupted run of {out.name!r} is there; resume continues it, overwrite starts again", param="out"
        )


def _write(run: Fitting, calibration: Calibration, report: dict[str, Any], partial: Path, out: Path) -> None:
    """Nothing appears at `out` before all of it is written."""
    run.tokenizer.model_max_length = run.config.max_length  # so that scoring truncates as training did
    # The encoder's path on this machine means nothing elsewhere.
    run.model.config._name_or_path = run.tokenizer.name_or_path = report["encoder"]
    with appearing(out, replace=True) as finished:
        with quiet_loading():  # saving has a progress bar too
            run.model.save_pretrained(finished)
            run.tokenizer.save_pretrained(finished)
        write_calibration(finished, calibration)
        (finished / "training.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_card(finished, report)
    shutil.rmtree(partial)


def partial_of(out: Path) -> Path:
    """The folder for the state of an unfinished run: beside `out`, so that the final rename is within one file
    system."""
    return out.parent / f".{out.name}.partial"
