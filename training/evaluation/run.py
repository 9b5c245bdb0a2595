"""The comparison: runs every method with every seed, scores the replies, and writes tables and plots.

A run is its folder. Finished cells are kept, so an interrupted run resumes where it stopped, and seeds or methods can
be added later.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emorl_core.errors import EmorlError
from emorl_core.files.disk import disk_full
from emorl_core.files.hashes import folder_hash
from emorl_core.files.writing import replacing
from emorl_core.scorers import Context, ScorerError
from training.data.clusters import clusters_of
from training.data.records import Record, one_per_prompt
from training.evaluation.baselines import baselines
from training.evaluation.cells import Cell, EvaluationError, cell_folder, read_cell, read_replies, write_failed
from training.evaluation.exams import exams
from training.evaluation.reporting.blind import sheet_and_key, write_sheet
from training.evaluation.reporting.report import csv_text, markdown
from training.evaluation.reporting.results import Scored, failures, results, scored
from training.evaluation.reporting.side_by_side import side_by_side
from training.evaluation.scores import Scorers, build_scorers, measures_of, scores_of
from training.pipeline.prepare import NOT_TRAINING, Data, records_hash
from training.progress import Progress, Say
from training.recipe.evaluation import EvaluationSettings
from training.recipe.recipe import Recipe
from training.search.inputs import prompts_hash

FORMAT = "emorl-evaluation/1"
ABOUT_FILE, RESULTS, SIDE_BY_SIDE_FILE, ERROR_FILE = "evaluation.json", "results", "side-by-side.md", "error.txt"

RunCell = Callable[[str, int, Progress], None]  # (method, seed, progress): writes the cell's folder


@dataclass(frozen=True, slots=True)
class Wanted:
    """The cells and reports to make. Raises `EvaluationError` naming the field."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str | None  # the method that the others are tested against
    ab_pairs: tuple[tuple[str, str], ...] = ()
    ab_items: int = 20  # prompts per pair
    side_by_side: int = 12  # prompts
    plots: bool = True
    left_out: Mapping[str, str] = field(default_factory=dict)  # skipped methods -> why

    def __post_init__(self) -> None:
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise EvaluationError(f"{name}: allowed are one or more, each once", param=name)
        if min(self.seeds) < 0:
            raise EvaluationError(f"seeds: {min(self.seeds)} is below 0", param="seeds")
        named = [("reference", name) for name in (self.reference,) if name is not None]
        named += [("ab", name) for pair in self.ab_pairs for name in pair]
        for what, name in named:
            if name not in self.methods:
                raise EvaluationError(
                    f"{what}: {name[:40]!r} is not among the methods of this run: {', '.join(self.methods)}",
                    param=what,
                )
        for pair in self.ab_pairs:
            if pair[0] == pair[1]:
                raise EvaluationError(f"ab: {pair[0]!r} against itself", param="ab")
        for name, number in (("ab_items", self.ab_items), ("side_by_side", self.side_by_side)):
            if number < 1:
                raise EvaluationError(f"{name} is {number}; allowed: from 1", param=name)


def held_out_records(recipe: Recipe, data: Data) -> tuple[Record, ...]:
    """The held-out prompts that every method answers, one record each. Raises `EvaluationError` if there are fewer than
    two."""
    records = tuple(one_per_prompt([*data.parts.get("test", ())]))[: recipe.evaluation.test_prompts]
    if len(records) < 2:
        raise EvaluationError(
            f"the recipe has {len(records)} test prompts; give data.splits.test a share", param="data.splits"
        )
    return records


@contextmanager
def open_run(
    out: Path, recipe: Recipe, folder: Path, data: Data, *, resume: bool = False, overwrite: bool = False
) -> Iterator[None]:
    """Lock the run's folder, new or resumed.

    Raises `EvaluationError`: it is not empty, it has a run of another recipe or other data, or another process is using
    it.
    """
    from filelock import FileLock, Timeout  # comes with huggingface_hub

    about = {"format": FORMAT, **_about(recipe, folder, data)}
    path = out / ABOUT_FILE
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not path.is_file())):
        raise EvaluationError(f"--out {out}: holds something that is no comparison; name another folder", param="out")
    if path.is_file() and not resume and not overwrite:
        raise EvaluationError(
            f"--out {out}: holds a comparison; --resume goes on with it, --overwrite starts anew", param="out"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            if overwrite and not resume:
                shutil.rmtree(out, ignore_errors=True)
            _check_about(path, about)
            yield
    except Timeout:
        raise EvaluationError(f"--out {out}: another program is at work in it", param="out") from None


def _about(recipe: Recipe, folder: Path, data: Data) -> dict[str, Any]:
    """Everything that cells depend on except seed and method."""
    settings = recipe.model_dump(mode="json", exclude={*NOT_TRAINING, "seed"})
    base = None if recipe.base.path is None else folder / Path(recipe.base.path).expanduser()
    return {
        "recipe": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "base": folder_hash(base) if base is not None and base.is_dir() else None,
        "data": records_hash([*data.parts["train"], *data.parts["validation"]]),
        "test": prompts_hash(held_out_records(recipe, data)),
        "search": [recipe.evaluation.search_prompts, recipe.evaluation.search_levels],
        "methods": _methods(recipe.evaluation),
    }


def _methods(settings: EvaluationSettings) -> dict[str, Any] | None:
    """The recipe's settings of single methods; None if it has none."""
    asked = {"instruction", "sentences", "front_prompts", "predictor_prompts"}
    return settings.model_dump(mode="json", include=asked, exclude_defaults=True) or None


def _check_about(path: Path, about: Mapping[str, Any]) -> None:
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise EvaluationError(f"{path}: is not JSON; --overwrite starts anew", param="resume") from None
        for key, value in about.items():
            if found.get(key) != value:
                raise EvaluationError(
                    f"--resume: the comparison in {path.parent} was begun with another {key}; "
                    "--overwrite starts anew, or name another --out",
                    param="resume",
                )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def run_cells(
    out: Path,
    wanted: Wanted,
    prepare: Callable[[], RunCell],
    *,
    retry_failed: bool = False,
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda line: None,
) -> None:
    """Run the missing cells, seed by seed. A method that fails leaves a failed cell, and the others continue.

    Args:
        prepare: loads what the methods need; called only if a cell is missing.
        retry_failed: run failed cells again; otherwise they are kept.
    """
    missing = missing_cells(out, wanted, retry_failed=retry_failed, say=say)
    if not missing:
        return
    run = prepare()
    for number, (method, seed) in enumerate(missing, start=1):
        label = f"{method}, seed {seed} ({number} of {len(missing)})"

        def told(stage: str, done: int, total: int, label: str = label) -> None:
            progress(f"{label}: {stage}", done, total)

        say(f"{label}: {told_of(attempt(out, method, seed, run, told))}")


def missing_cells(out: Path, wanted: Wanted, *, retry_failed: bool, say: Say) -> list[tuple[str, int]]:
    """(method, seed) of the cells to run, seed by seed."""
    every = [(method, seed) for seed in wanted.seeds for method in wanted.methods]
    missing = [key for key in every if _is_missing(read_cell(out, *key), retry_failed)]
    if 0 < len(missing) < len(every):
        say(f"{len(every) - len(missing)} of {len(every)} cells are there already")
    return missing


def told_of(cell: Cell) -> str:
    return f"{cell.status}: {cell.reason}" if cell.reason else cell.status


def _is_missing(cell: Cell | None, retry_failed: bool) -> bool:
    return cell is None or (retry_failed and not cell.done)


def attempt(out: Path, method: str, seed: int, run: RunCell, told: Progress) -> Cell:
    """Run a cell. Any error makes it a failed cell, except a full disk, which is raised."""
    try:
        run(method, seed, told)
    except EmorlError as error:
        return write_failed(out, method, seed, error.message)
    except Exception as error:
        if disk_full(error):
            raise  # not the method's fault: the cell stays missing, and --resume runs it
        # One method's error must not discard the others' results. Its text may quote a prompt, so the table has only
        # its type; the traceback is in the cell's folder.
        folder = cell_folder(out, method, seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        return write_failed(out, method, seed, f"{type(error).__name__}, see {ERROR_FILE} in the cell's folder")
    cell = read_cell(out, method, seed)
    return cell if cell is not None else write_failed(out, method, seed, "the method left no cell")


def judge(
    out: Path,
    wanted: Wanted,
    recipe: Recipe,
    folder: Path,
    data: Data,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Score the finished cells, and write results, plots, side-by-side page and A/B sheet; returns the results.

    Raises `ScorerError` if a scorer cannot be built, `EvaluationError` if there is no cell.
    """
    records = held_out_records(recipe, data)
    context = Context(recipe.compute.scorer_device, folder, data.parts["train"])
    scorers = build_scorers(
        {name: objective.scorer for name, objective in recipe.objectives.items()}, recipe.evaluation.scorers, context
    )
    cells: dict[str, dict[int, Scored]] = {method: {} for method in wanted.methods}
    texts: dict[str, dict[int, list[str]]] = {method: {} for method in wanted.methods}
    every = [(method, seed) for method in wanted.methods for seed in wanted.seeds]
    for number, (method, seed) in enumerate(every):
        progress("scoring", number, len(every))
        cell = read_cell(out, method, seed)
        if cell is not None:
            cells[method][seed], own = _scored(out, cell, records, scorers)
            if own is not None:
                texts[method][seed] = own
    progress("scoring", len(every), len(every))
    cells = {method: own for method, own in cells.items() if own}
    if not cells:
        raise EvaluationError(f"--out {out}: holds no cell of these methods and seeds", param="out")
    reference = wanted.reference if wanted.reference in cells else None
    about = {
        "name": recipe.name,
        "preset": recipe.preset,
        **_about(recipe, folder, data),
        # Without a prompt format in the recipe, the base decides it.
        "recipe_values": recipe.model_dump(mode="json", exclude=None if recipe.words_prompts else {"prompt_template"}),
        "environment": _environment(),
    }
    progress("baselines", 0, 2)
    beside = baselines(out, data, records, scorers)
    progress("baselines", 1, 2)
    found = results(
        cells,
        about=about,
        clusters=clusters_of(records),
        reference=reference,
        baselines=beside,
        left_out=wanted.left_out,
    )
    found["exams"] = exams(out, data, scorers)
    progress("baselines", 2, 2)
    texts = {method: texts[method] for method in cells}
    found["replies_sha256"] = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    pairs = [pair for pair in wanted.ab_pairs if all(texts.get(name) for name in pair)]
    sheet, key, same = sheet_and_key(records, texts, pairs, count=wanted.ab_items, seed=0)
    found["ab_same_reply"] = same
    page = side_by_side(records, texts, cells, count=wanted.side_by_side)
    for name, text in (
        (f"{RESULTS}.json", json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
        (f"{RESULTS}.csv", csv_text(found)),
        (f"{RESULTS}.md", markdown(found)),
        (SIDE_BY_SIDE_FILE, page),
    ):
        with replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if pairs:
        write_sheet(out, sheet, key)
    if wanted.plots:
        from training.evaluation.reporting.plots import draw_all

        draw_all(out, found)
    return found


def _environment() -> dict[str, Any]:
    """The machine and package versions, without which times mean little."""
    import torch

    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in ("emorl", "torch", "transformers", "numpy")},
    }


def _scored(out: Path, cell: Cell, records: Sequence[Record], scorers: Scorers) -> tuple[Scored, list[str] | None]:
    """The cell's scores and texts; it is failed if replies are missing or cannot be scored."""
    if not cell.done:
        return Scored(cell), None
    try:
        replies = read_replies(out, cell, records)
        columns = scores_of(out, cell, replies, records, scorers)
    except (EvaluationError, ScorerError) as error:
        return Scored(cell.model_copy(update={"status": "failed", "reason": error.message})), None
    objectives = {name: columns[name] for name in scorers.objectives}
    judges = {name: columns[name] for name in scorers.judges}
    return scored(cell, objectives, judges, measures_of(replies, records)), [reply.text for reply in replies]


__all__ = ["EvaluationError", "Wanted", "failures", "held_out_records", "judge", "open_run", "run_cells"]
