"""Cells of a comparison without a model: a tiny recipe, and methods that answer by a rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emorl_core.files.writing import replacing
from training.data.records import Record
from training.evaluation.cells import CELL_FILE, FORMAT, REPLIES_FILE, cell_folder, prompt_sha256
from training.evaluation.run import held_out_records
from training.pipeline.prepare import Data, load_data
from training.progress import Progress
from training.recipe.recipe import Recipe, parse_recipe

FEELINGS = "tired angry sad alone lost worried hurt stuck small numb empty tense".split()
PLACES = ("at work", "at home", "with my mother", "at night", "among friends")


def tiny_recipe(folder: Path, **values: Any) -> Recipe:
    """Sixty prompts of one sentence in `folder`, lexical scorers, six prompts of them held out unless told otherwise."""
    lines = [{"prompt": f"I feel {feeling} {place} again."} for feeling in FEELINGS for place in PLACES]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return parse_recipe(
        {
            "name": "tiny",
            "base": {"hub": "owner/name"},
            "data": {"sources": [{"kind": "jsonl", "path": "prompts.jsonl"}]},
            "objectives": {"reflection": {"scorer": "lexical_reflection"}, "empathy": {"scorer": "lexical_empathy"}},
            "evaluation": {"scorers": {"variety": "diversity"}},
            **values,
        }
    )


def tiny_data(folder: Path, **values: Any) -> tuple[Recipe, Data, tuple[Record, ...]]:
    recipe = tiny_recipe(folder, **values)
    data = load_data(recipe, folder)
    return recipe, data, held_out_records(recipe, data)


def write_cell(
    out: Path,
    method: str,
    seed: int,
    records: tuple[Record, ...],
    answer: Callable[[str], str],
    **values: Any,
) -> None:
    """A cell as a method leaves it."""
    folder = cell_folder(out, method, seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "index": index,
            "prompt_sha256": prompt_sha256(record.prompt),
            "text": answer(record.prompt),
            "tokens": len(answer(record.prompt).split()),
            "finish_reason": "stop",
        }
        for index, record in enumerate(records)
    ]
    (folder / REPLIES_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    cell: Mapping[str, Any] = {
        "format": FORMAT,
        "method": method,
        "seed": seed,
        "status": "done",
        "reason": None,
        "weights": {"reflection": 0.5, "empathy": 0.5},
        "combine": "hidden",
        "anchored": False,
        "consumption": {"prompts": 160 + seed, "samples": 480, "tokens": 900, "seconds": 12.5, "shared_with": []},
        "curve": {"mean": [{"step": 0, "prompts": 0, "score": 0.1}, {"step": 8, "prompts": 128, "score": 0.4}]},
        "inference": {"lane_row_steps": 120, "tokens": 60, "ms_per_token": 1.5, "seconds": 0.09},
        "memory": {"base": 4000, "adapters": 400},
        **values,
    }
    with replacing(folder / CELL_FILE) as temporary:
        temporary.write_text(json.dumps(cell))


def listening(prompt: str) -> str:
    """Gives the feeling back."""
    return f"You feel {prompt.split()[2]}, and that makes sense."


def deaf(prompt: str) -> str:
    return "Things will be better soon."


def copying(prompt: str) -> str:
    return prompt


ANSWERS: dict[str, Callable[[str], str]] = {"base": deaf, "uniform": copying, "emorl": listening}


def run_by_rule(out: Path, records: tuple[Record, ...]) -> Callable[[str, int, Progress], None]:
    """`RunCell` over `ANSWERS`."""

    def run(method: str, seed: int, progress: Progress) -> None:
        progress("answering", 1, 1)
        write_cell(out, method, seed, records, ANSWERS[method])

    return run
