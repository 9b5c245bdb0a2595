"""A bundle's files -> model, adapters and tokenizer in memory, all of one moment."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from emorl_core.adapters.adapter import of_another_base, read_peft
from emorl_core.bundles.bundle import BUNDLE_FILE, Bundle
from emorl_core.bundles.predictor import Predictor
from emorl_core.bundles.snapshot import Changed, Hashes, Snapshot, steadily
from emorl_core.bundles.stored_predictors import load_predictors
from emorl_core.bundles.stored_scorers import Scorers, load_scorers
from emorl_core.errors import BundleError
from emorl_core.models.family import LaneModel
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.registry import load_model
from emorl_core.text.tokenizer import HuggingFaceTokenizer, Tokenizer
from emorl_core.types import Quantize

logger = logging.getLogger("emorl.core")


@dataclass(frozen=True, slots=True)
class Beside:
    """Everything in a bundle except the model."""

    bundle: Bundle
    tokenizer: Tokenizer
    hashes: Hashes | None
    scorers: Scorers
    predictors: dict[str, Predictor]  # by profile


@dataclass(frozen=True, slots=True)
class Loaded(Beside):
    """`model` has the adapters of `bundle`'s objectives attached, in their order."""

    model: LaneModel


@dataclass(frozen=True, slots=True)
class Options:
    """How to load a bundle; each field as the argument of `Ensemble.load`."""

    device: torch.device
    dtype: torch.dtype
    quantize: Quantize = "off"
    hashed: bool = False
    scorer_device: str | None = None
    scorer_code: bool = False
    group: ProcessGroup | None = None


def load_bundle(where: str | os.PathLike[str] | Snapshot, options: Options, *, revision: str | None = None) -> Loaded:
    """Load a bundle. With a group, every process of it calls this with the same bundle, dtype and quantize; on rank 0
    the model is then a `Leader`, elsewhere the part itself.

    Raises:
        BundleError, AdapterError, UnsupportedModel: as `Ensemble.load`; with a group, in every process.
        Changed: the bundle was changed while it was read.
    """
    if isinstance(where, Snapshot):
        return _checked(where, options)
    if options.group is None:
        return steadily(where, partial(_read, options=options), revision=revision)
    with Snapshot.open(where, revision=revision) as files:
        return _in_parts(files, options, options.group)


def _checked(files: Snapshot, options: Options) -> Loaded:
    loaded = _read(files, options)
    files.check()
    return loaded


def _in_parts(files: Snapshot, options: Options, group: ProcessGroup) -> Loaded:
    from emorl_core.models.causal.model import CausalModel  # with transformers' modelling code, as in `CausalFamily`
    from emorl_core.models.parallel.leader import Leader

    loaded = _checked(files, options)
    marks = group.reports(files.marks())
    if any(each != marks[0] for each in marks):
        where = files.bundle.folder
        raise Changed(f"{where}: was changed while {group.size} processes read it; start them again")
    if not group.leads:
        return loaded
    assert isinstance(loaded.model, CausalModel)  # the only family that can be split
    held = sum(loaded.model.parameter_bytes().values())
    logger.info("the model is split over %d processes, %d bytes of parameters in this one", group.size, held)
    return replace(loaded, model=Leader(loaded.model, group))


def load_beside(
    files: Snapshot, *, hashed: bool = False, scorer_device: str | None = None, scorer_code: bool = False
) -> Beside:
    """Load everything except the model; arguments and errors as `Ensemble.load`. Call `files.check` afterwards, since
    files may have changed."""
    with _hashing(files, hashed) as hashes:
        return _beside(files, hashes, scorer_device, scorer_code)


def _read(files: Snapshot, options: Options) -> Loaded:
    with _hashing(files, options.hashed) as hashes:
        model = load_model(files.base, device=options.device, dtype=options.dtype, group=options.group)
        model.quantize(options.quantize)
        adapters = [read_peft(folder, name) for name, folder in files.adapters.items()]
        model.attach(adapters)
        for doubt in of_another_base(adapters, files.bundle.spec.base.hub):
            logger.warning("%s", doubt)
        beside = _beside(files, hashes, options.scorer_device, options.scorer_code)
    _check_predictors(beside.predictors, model)
    return Loaded(beside.bundle, beside.tokenizer, beside.hashes, beside.scorers, beside.predictors, model)


@contextmanager
def _hashing(files: Snapshot, hashed: bool) -> Iterator[Callable[[], Hashes | None]]:
    """Hash files on another thread while the block loads; hashing releases the GIL, so it costs little time."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        hashes = thread.submit(files.hashes) if hashed else None
        yield lambda: None if hashes is None else hashes.result()


def _beside(
    files: Snapshot, hashes: Callable[[], Hashes | None], scorer_device: str | None, scorer_code: bool
) -> Beside:
    tokenizer = HuggingFaceTokenizer(files.base)
    scorers = {} if scorer_device is None else load_scorers(files.inside, device=scorer_device, code=scorer_code)
    return Beside(files.bundle, tokenizer, hashes(), scorers, load_predictors(files.inside))


def _check_predictors(predictors: Mapping[str, Predictor], model: LaneModel) -> None:
    """Raises `BundleError` for a predictor whose input size is not the model's."""
    size = model.head_rows(torch.zeros(1, dtype=torch.long, device=model.facts.device)).shape[-1]
    for name, predictor in predictors.items():
        if predictor.mean.size != size:
            key = f"profiles.{name}.predictor"
            raise BundleError(
                f"{BUNDLE_FILE}: {key} reads states of {predictor.mean.size} numbers; the base's have {size}", param=key
            )
