"""Receipts: everything that made one text, so that a generation in a clinical record can be made again.

A receipt holds the prompt and the text. It is given to the caller who sent the one and got the other, and is kept
nowhere else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from emorl_core import __version__
from emorl_core.bundle import BUNDLE_FILE, folder_hash
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.types import Completion, FinishReason, Request

FORMAT: Literal["emorl-receipt/1"] = "emorl-receipt/1"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Part):
    """What was loaded. Hashes are SHA-256 over the names and contents of a folder's files; null without a bundle."""

    bundle: str
    bundle_yaml: str | None
    base: str | None
    adapters: dict[str, str]


class ReceiptSampling(_Part):
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    stop: list[str]


class Receipt(_Part):
    """`weights`: every lane's number as the engine used it, so they are given back with `normalize: false`."""

    format: Literal["emorl-receipt/1"] = FORMAT
    id: str
    created: str
    prompt: str
    weights: dict[str, float]
    profile: str | None
    combine: Literal["hidden", "probs"]
    sampling: ReceiptSampling
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    identity: Identity
    device: str
    dtype: str
    versions: dict[str, str]


def identity_of(ensemble: Ensemble) -> Identity:
    """Blocking: reads every file of the bundle once."""
    bundle = ensemble.bundle
    if bundle is None:
        return Identity(bundle=ensemble.name, bundle_yaml=None, base=None, adapters={})
    return Identity(
        bundle=ensemble.name,
        bundle_yaml=hashlib.sha256((bundle.folder / BUNDLE_FILE).read_bytes()).hexdigest(),
        base=folder_hash(bundle.base_folder()),
        adapters={name: folder_hash(bundle.adapter_folder(name)) for name in ensemble.objectives},
    )


def make_receipt(
    ensemble: Ensemble, identity: Identity, prompt: str, request: Request, completion: Completion
) -> Receipt:
    sampling = {**dataclasses.asdict(request.sampling), "seed": completion.seed, "stop": list(request.sampling.stop)}
    return Receipt(
        id=completion.request_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        prompt=prompt,
        weights=dict(zip(ensemble.lanes, request.weights, strict=True)),
        profile=completion.profile,
        combine=request.combine,
        sampling=ReceiptSampling(**sampling),
        text=completion.text,
        token_ids=list(completion.token_ids),
        finish_reason=completion.finish_reason,
        identity=identity,
        device=ensemble.device,
        dtype=ensemble.dtype,
        versions=_versions(),
    )


def replay_request(ensemble: Ensemble, receipt: Receipt) -> dict[str, Any]:
    """The keyword arguments of `Ensemble.generate` that make the receipt's text again.

    Raises:
        InvalidRequest: the receipt has objectives that this bundle lacks.
    """
    missing = set(receipt.weights) - set(ensemble.lanes)
    if missing:
        raise InvalidRequest(
            f"the receipt has objectives that this bundle lacks: {', '.join(sorted(missing))}", param="weights"
        )
    return {
        "weights": receipt.weights,
        "normalize": False,
        "combine": receipt.combine,
        **receipt.sampling.model_dump(),
    }


def differences(ensemble: Ensemble, receipt: Receipt) -> list[str]:
    """What is not as it was when the receipt was written, one line each: reasons why a replay may differ."""
    found = []
    now = identity_of(ensemble)
    for field in ("bundle", "bundle_yaml", "base"):
        if getattr(now, field) != getattr(receipt.identity, field):
            found.append(f"{field} is another one")
    for name in sorted(set(now.adapters) | set(receipt.identity.adapters)):
        if now.adapters.get(name) != receipt.identity.adapters.get(name):
            found.append(f"the adapter of {name} is another one")
    here = {"device": ensemble.device, "dtype": ensemble.dtype, **_versions()}
    there = {"device": receipt.device, "dtype": receipt.dtype, **receipt.versions}
    found += [f"{name} was {there.get(name)} and is {here.get(name)}" for name in here if here[name] != there.get(name)]
    return found


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"emorl": __version__, "python": platform.python_version(), **packages}
