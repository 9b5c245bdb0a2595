"""The registry of data sources by kind, and the function that loads them."""

from __future__ import annotations

from pathlib import Path

from emorl_core.kinds import parse_spec
from training.data.exchanges.source import ExchangesSource
from training.data.kinds.annomi import AnnomiSource
from training.data.kinds.epitome import EpitomeSource
from training.data.kinds.esconv import EsconvSource
from training.data.kinds.hub import HubSource
from training.data.kinds.pair import PairSource
from training.data.kinds.psych8k import Psych8kSource
from training.data.kinds.tables import CsvSource, JsonlSource
from training.data.records import DataError, RecordSet
from training.data.rows import Source
from training.data.synthetic.source import SyntheticSource

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
    "exchanges": ExchangesSource,
}


def parse_source(spec: object, *, where: str = "data") -> Source:
    """A mapping such as `{kind: pair, path: pair.csv, view: graded}` -> its model. Raises `DataError`."""
    return parse_spec(SOURCES, spec, where=where, error=DataError)


def load_records(spec: object, *, base: Path | None = None, where: str = "data") -> RecordSet:
    """Parse and load. `base`: base of relative paths. Raises `DataError`."""
    return parse_source(spec, where=where).load(base)
