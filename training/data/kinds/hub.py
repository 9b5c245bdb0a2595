"""Hugging Face `datasets`: a hub id, or a local folder that the library can read. It is an optional extra."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from training.data.kinds.tables import Columns
from training.data.records import DataError, RecordSet, Tally
from training.data.rows import fault_in_value


class HubSource(Columns):
    """One split of a data set, with columns named as for JSON lines."""

    kind: Literal["hub"] = "hub"
    id: str  # "owner/name", or a folder with data files, relative to the recipe's folder
    name: str | None = None  # the configuration, if the data set has several
    split: str = "train"
    revision: str | None = None  # a commit or tag; set it for reproducible runs

    def load(self, base: Path | None = None) -> RecordSet:
        try:
            import datasets
        except ImportError:
            raise DataError(
                "data kind 'hub' needs the `datasets` library, which comes with the extra emorl[data]", param="kind"
            ) from None
        where = str(base / self.id) if base is not None and (base / self.id).is_dir() else self.id
        try:
            table = datasets.load_dataset(where, name=self.name, split=self.split, revision=self.revision)
        except Exception as error:  # noqa: BLE001  the library raises a dozen unrelated types, even connection errors
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            # The library's underlying error may quote the row, so only its number is reported.
            row = re.search(r"\bin row (\d+)", str(error.__cause__))
            reason += f" in row {row[1]}" if row else ""
            raise DataError(
                f"data set {self.id!r} ({self.split}) cannot be loaded: {type(error).__name__}: {reason}", param="id"
            ) from None
        missing = [column for column in self.wanted() if column not in table.column_names]
        if missing:
            raise DataError(
                f"data set {self.id!r} ({self.split}) has no column {missing[0]!r}; it has "
                f"{', '.join(table.column_names)}",
                param="id",
            )
        tally = Tally(self.on_bad_row)
        table = table.select_columns(list(self.wanted()))
        tally.rows = len(table)
        digest = hashlib.sha256()

        def rows() -> Iterator[tuple[str, dict[str, object]]]:
            for index, row in enumerate(table):
                digest.update(json.dumps(row, sort_keys=True, default=str).encode())
                where = f"{self.id}[{index}]"
                if fault := fault_in_value(row):
                    tally.malformed(where, f"the row holds {fault}")
                    continue
                yield where, row

        records = self.records(rows(), tally)
        return tally.close(self.id, records, digest.hexdigest())
