"""The evaluations of a search, one JSON line each, so that a killed search resumes where it stopped.

Lines contain no text: the first has a hash of the prompts, the others hashes of replies. Only the last line can be
incomplete, since batches are written in order; it is removed before anything is appended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.search.strategies.grid import SearchError

FORMAT = "emorl-search/1"


def check_log(path: Path) -> None:
    """Raises `SearchError` if a search is already logged there."""
    if path.exists():
        raise SearchError(
            f"{path}: holds an earlier search; --resume goes on with it, --overwrite starts anew, or name another "
            "--out",
            param="out",
        )


class EvaluationLog:
    """An open log. `read` has the evaluations that it contained when opened."""

    def __init__(self, path: Path, about: Mapping[str, Any], *, resume: bool) -> None:
        """about: the inputs of the evaluations, JSON values.

        Raises `SearchError`: the log exists and `resume` is false, it has other inputs, or it is broken.
        """
        self._path = path
        self.read: list[dict[str, Any]] = []
        wanted = {"format": FORMAT, **about}
        if not resume:
            check_log(path)
        lines = self._whole_lines() if path.exists() else []
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write([wanted])
            return
        for key, value in wanted.items():
            found = lines[0].get(key)
            if found != json.loads(json.dumps(value)):
                raise SearchError(
                    f"{path}: the search there had another {key}; --overwrite starts anew, or name another --out",
                    param="resume",
                )
        self.read = lines[1:]

    def append(self, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Append evaluations; they are on disk when this returns."""
        if evaluations:
            self._write(evaluations)

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The complete lines; an incomplete last line is removed."""
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        lines = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise SearchError(f"{self._path}: line {number} is not a JSON object; --overwrite starts anew")
            lines.append(value)
        return lines

    def _write(self, values: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n" for value in values)
        # buffered, since an unbuffered write to a full disk may be partial without an error
        with open(self._path, "ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
