"""The inputs of an evaluation, compared when a log is resumed and between the machines of a cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from emorl_core.ensemble import Ensemble
from emorl_core.files.hashes import folder_hash
from emorl_core.weights import BASE


def about_evaluations(
    ensemble: Ensemble, objectives: Sequence[str], specs: Mapping[str, Any], max_new_tokens: int
) -> dict[str, Any]:
    """All inputs except the prompts. specs: of the scorers."""
    return {
        "bundle": bundle_hash(ensemble, objectives),
        "objectives": list(objectives),
        "scorers": dict(specs),
        "max_new_tokens": max_new_tokens,
        "dtype": ensemble.dtype,
    }


def bundle_hash(ensemble: Ensemble, objectives: Sequence[str]) -> str:
    """Blocking: reads the files of the base and of these adapters."""
    spec, bundle = ensemble.spec, ensemble.bundle
    parts: dict[str, Any] = {"template": spec.prompt_template, "limit": spec.max_source_tokens, "name": spec.name}
    if bundle is not None:
        parts["base"] = folder_hash(bundle.base_folder())
        parts |= {name: folder_hash(bundle.adapter_folder(name)) for name in objectives if name != BASE}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
