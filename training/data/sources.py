"""Every kind of data by name, and the one function that loads it."""

from __future__ import annotations

from pathlib import Path

from training.data.annomi import AnnomiSource
from training.data.corpus import SyntheticSource
from training.data.epitome import EpitomeSource
from training.data.esconv import EsconvSource
from training.data.hub import HubSource
from training.data.jsonl import CsvSource, JsonlSource
from training.data.pair import PairSource
from training.data.psych8k import Psych8kSource
from training.data.records import DataError, RecordSet
from training.data.rows import Source
from training.spec import parse_spec

SOURCES: dict[str, type[Source]] = {
    "pair": PairSource,
    "psych8k": Psych8kSource,
    "annomi": AnnomiSource,
    "epitome": EpitomeSource,
    "esconv": EsconvSource,
    "jsonl": JsonlSource,
    "csv": CsvSource,
    "hub": HubSource,
    "synthetic": SyntheticSource,
}


def parse_source(spec: object, *, where: str = "data") -> Source:
    """A mapping such as `{kind: pair, path: pair.csv, view: graded}` -> its model. Raises `DataError`."""
    return parse_spec(SOURCES, spec, where=where, error=DataError)


def load_records(spec: object, *, base: Path | None = None, where: str = "data") -> RecordSet:
    """Parse and load. `base`: the folder that relative paths start from. Raises `DataError`."""
    return parse_source(spec, where=where).load(base)
