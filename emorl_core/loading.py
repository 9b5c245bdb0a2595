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
    """What a bundle has beside its model."""

    bundle: Bundle
    tokenizer: Tokenizer
    hashes: Hashes | None
    scorers: Scorers
    predictors: dict[str, Predictor]  # by profile


@dataclass(frozen=True, slots=True)
class Loaded(Beside):
    """`model` has the adapters of `bundle`'s objectives attached, in their order."""

    model: LaneModel


def load_bundle(
    where: str | os.PathLike[str] | Snapshot,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize = "off",
    revision: str | None = None,
    hashed: bool = False,
    scorer_device: str | None = None,
    scorer_code: bool = False,
    group: ProcessGroup | None = None,
) -> Loaded:
    """Arguments and errors as `Ensemble.load`."""
    read = partial(
        _read,
        device=device,
        dtype=dtype,
        quantize=quantize,
        hashed=hashed,
        scorer_device=scorer_device,
        scorer_code=scorer_code,
        group=group,
    )
    if not isinstance(where, Snapshot):
        return steadily(where, read, revision=revision)
    loaded = read(where)
    where.check()
    return loaded


def load_part(
    where: str | os.PathLike[str],
    group: ProcessGroup,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize,
    revision: str | None = None,
    hashed: bool = False,
    scorer_device: str | None = None,
    scorer_code: bool = False,
) -> Loaded:
    """Every process of the group calls this, with the same bundle, dtype and quantize. On rank 0 the model is a
    `Leader`, elsewhere the part itself. Arguments as `Ensemble.load`.

    Raises:
        BundleError, AdapterError, UnsupportedModel: in every process, where the reason is in the files.
        Changed: the bundle was changed while they read it.
    """
    from emorl_core.models.causal.model import CausalModel  # with transformers' modelling code, as in `CausalFamily`
    from emorl_core.models.parallel.leader import Leader

    with Snapshot.open(where, revision=revision) as files:
        loaded = load_bundle(
            files,
            device=device,
            dtype=dtype,
            quantize=quantize,
            hashed=hashed,
            scorer_device=scorer_device,
            scorer_code=scorer_code,
            group=group,
        )
        marks = group.reports(files.marks())
    if any(each != marks[0] for each in marks):
        raise Changed(f"{where}: was changed while {group.size} processes read it; start them again")
    if not group.leads:
        return loaded
    assert isinstance(loaded.model, CausalModel)  # the one family that is held in parts
    held = sum(loaded.model.parameter_bytes().values())
    logger.info("the model is held in parts by %d processes, %d bytes of parameters in this one", group.size, held)
    return replace(loaded, model=Leader(loaded.model, group))


def load_beside(
    files: Snapshot, *, hashed: bool = False, scorer_device: str | None = None, scorer_code: bool = False
) -> Beside:
    """All but the model; arguments and errors as `Ensemble.load`. It may change meanwhile: `files.check` tells."""
    with _hashing(files, hashed) as hashes:
        return _beside(files, hashes, scorer_device, scorer_code)


def _read(
    files: Snapshot,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize,
    hashed: bool,
    scorer_device: str | None,
    scorer_code: bool,
    group: ProcessGroup | None,
) -> Loaded:
    with _hashing(files, hashed) as hashes:
        model = load_model(files.base, device=device, dtype=dtype, group=group)
        model.quantize(quantize)
        adapters = [read_peft(folder, name) for name, folder in files.adapters.items()]
        model.attach(adapters)
        for doubt in of_another_base(adapters, files.bundle.spec.base.hub):
            logger.warning("%s", doubt)
        beside = _beside(files, hashes, scorer_device, scorer_code)
    _check_predictors(beside.predictors, model)
    return Loaded(beside.bundle, beside.tokenizer, beside.hashes, beside.scorers, beside.predictors, model)


@contextmanager
def _hashing(files: Snapshot, hashed: bool) -> Iterator[Callable[[], Hashes | None]]:
    """Hash while others load: it needs no interpreter, so it costs little time there."""
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
    """By profile. Raises `BundleError` for one of states of another size than the model's."""
    size = model.head_rows(torch.zeros(1, dtype=torch.long, device=model.facts.device)).shape[-1]
    for name, predictor in predictors.items():
        if predictor.mean.size != size:
            key = f"profiles.{name}.predictor"
            raise BundleError(
                f"{BUNDLE_FILE}: {key} reads states of {predictor.mean.size} numbers; the base's have {size}", param=key
            )
