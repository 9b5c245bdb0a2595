"""The log of a run: always JSON lines, and the trackers that the recipe selects. It never contains prompts or
replies."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emorl_core.files.writing import replacing
from training.config import RecipeError
from training.rl.processes import Processes

LOG_FILE = "log.jsonl"

Report = Callable[[Mapping[str, Any]], None]


def check_trackers(names: Sequence[str]) -> None:
    """Raises `RecipeError` for a tracker whose package is not installed; accelerate would silently skip it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"compute.trackers: {name!r} is not installed; pip install {name}, or leave it out",
                param="compute.trackers",
            )


class RunLog:
    """One JSON object per line: `{"event": "step" | "validation" | "end" | ..., "step": n, ...}`."""

    def __init__(self, folder: Path, processes: Processes, report: Report) -> None:
        """report: also called with every record, on the main process; for progress on the command line."""
        self._path = folder / LOG_FILE
        self._processes, self._report = processes, report

    def keep_until(self, step: int) -> None:
        """Drop records after `step`, which a resumed run writes again."""
        if not self._processes.is_main or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break  # an incomplete line of a killed run
            if record["step"] <= step:
                kept.append(line + "\n")
        with replacing(self._path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, event: str, step: int, **values: Any) -> dict[str, Any]:
        """Returns the record, in every process."""
        record = {"event": event, "step": step, **values}
        if not self._processes.is_main:
            return record
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._report(record)
        numbers = dict(_flat(values, event))
        if numbers:
            self._processes.log(numbers, step)
        return record


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    """Nested numbers as `step/reflection/score`, for trackers."""
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}/{key}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}/{key}", float(value)))
    return found


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON lacks, by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value
