"""One cell of the comparison, a method trained with a seed, and its folder.

`cells/<method>/seed-<seed>/cell.json` has its status and measures, `replies.jsonl` its replies to every held-out
prompt. A cell exists once `cell.json` does, which is written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from emorl_core.config import faults
from emorl_core.errors import EmorlError
from emorl_core.files.writing import replacing
from emorl_core.types import Combine
from training.data.records import Record

FORMAT: Literal["emorl-cell/1"] = "emorl-cell/1"
CELLS_DIR, CELL_FILE, REPLIES_FILE = "cells", "cell.json", "replies.jsonl"


class EvaluationError(EmorlError):
    """A comparison cannot be run or read; one line that names the field or the file."""

    code = "invalid_evaluation"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")  # allow: a method may add fields of its own


class Consumption(_Part):
    """The cost of all training that a method needs. `shared_with`: methods that use the same training, which is run
    once."""

    pairs: int = 0  # given replies fitted on before reinforcement learning
    prompts: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    shared_with: tuple[str, ...] = ()


class SearchCost(_Part):
    """The cost of choosing the weights, after training."""

    evaluations: int = 0
    prompts: int = 0
    seconds: float = 0.0


class Inference(_Part):
    """The cost of answering the held-out prompts."""

    lane_row_steps: int = 0  # lane rows computed, one token each
    tokens: int = 0
    scored: int = 0  # texts that the scorers read to choose the replies
    ms_per_token: float = 0.0
    seconds: float = 0.0
    first_token_ms: float | None = None  # of one prompt alone; with several replies, of the first


class FrontPoint(_Part):
    """The mean scores of one weight vector over the prompts."""

    weights: Mapping[str, float]
    scores: Mapping[str, float]


class FrontOf(_Part):
    """A method's front; see `training.evaluation.methods.front`."""

    prompts: int
    hypervolume: float
    mean_inner_product: float
    cover: float
    points: tuple[FrontPoint, ...]


class Memory(_Part):
    """Bytes of parameters while the method answers."""

    base: int = 0
    adapters: int = 0


class CurvePoint(_Part):
    """A validation during training. `prompts`: consumed so far."""

    step: int
    prompts: int
    score: float


class Cell(_Part):
    """The content of `cell.json`."""

    format: Literal["emorl-cell/1"] = FORMAT
    method: str
    seed: int
    status: Literal["done", "failed"]
    reason: str | None = None
    weights: Mapping[str, float] | None = None
    combine: Combine = "hidden"
    anchored: bool = False
    consumption: Consumption = Consumption()
    search: SearchCost | None = None
    curve: Mapping[str, tuple[CurvePoint, ...]] = {}
    inference: Inference = Inference()
    memory: Memory = Memory()
    front: FrontOf | None = None

    @property
    def done(self) -> bool:
        return self.status == "done"


class Reply(_Part):
    """One line of `replies.jsonl`."""

    index: int
    prompt_sha256: str
    text: str
    tokens: int
    finish_reason: str


def cell_folder(out: Path, method: str, seed: int) -> Path:
    return out / CELLS_DIR / method / f"seed-{seed}"


def read_cell(out: Path, method: str, seed: int) -> Cell | None:
    """Read a cell; None if it does not exist yet. Raises `EvaluationError` for a file that is not a cell, or another
    cell's."""
    path = cell_folder(out, method, seed) / CELL_FILE
    try:
        cell = Cell.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as fault:
        raise EvaluationError(f"{_short(path, out)}: {faults(fault)[0]}", param="out") from None
    if (cell.method, cell.seed) != (method, seed):
        raise EvaluationError(f"{_short(path, out)}: is of {cell.method}, seed {cell.seed}", param="out")
    return cell


def write_failed(out: Path, method: str, seed: int, reason: str) -> Cell:
    """Write a failed cell with the reason."""
    cell = Cell(method=method, seed=seed, status="failed", reason=reason)
    folder = cell_folder(out, method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CELL_FILE) as temporary:
        temporary.write_text(json.dumps(cell.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    return cell


def read_replies(out: Path, cell: Cell, records: Sequence[Record]) -> tuple[Reply, ...]:
    """One reply per held-out prompt, in order. Raises `EvaluationError`: too few, too many, or to other prompts."""
    path = cell_folder(out, cell.method, cell.seed) / REPLIES_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() splits inside texts too
        replies = tuple(Reply.model_validate_json(line) for line in lines if line)
    except FileNotFoundError:
        raise EvaluationError(f"{_short(path, out)}: is missing", param="out") from None
    except ValidationError:
        raise EvaluationError(f"{_short(path, out)}: holds a line that is no reply", param="out") from None
    if len(replies) != len(records):
        raise EvaluationError(
            f"{_short(path, out)}: {len(replies)} replies for {len(records)} held-out prompts", param="out"
        )
    for number, (reply, record) in enumerate(zip(replies, records, strict=True)):
        if reply.index != number or reply.prompt_sha256 != prompt_sha256(record.prompt):
            raise EvaluationError(f"{_short(path, out)}: line {number + 1} answers another prompt", param="out")
    return replies


def prompt_sha256(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def _short(path: Path, out: Path) -> str:
    return str(path.relative_to(out.parent))
