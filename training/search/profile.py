"""Writes the found weights as a profile of the bundle, with their provenance."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emorl_core.bundles.bundle import BUNDLE_FILE, BundleSpec, read_spec, write_spec
from emorl_core.bundles.profiles import PredictorSpec, ProfileSpec
from emorl_core.bundles.stored_scorers import store_scorers
from emorl_core.config import explain
from training.search.strategies.grid import SearchError

BY = "emorl search"


def check_profile(spec: BundleSpec, name: str, *, overwrite: bool, resumed: str | None = None) -> None:
    """Check, before the search, that a profile of that name can be written. resumed: the goal of a resumed search,
    which may replace the profile that it wrote before. Raises `SearchError`."""
    if name in spec.profiles and not overwrite:
        origin = spec.profiles[name].origin
        if resumed is None or (origin.get("by"), origin.get("goal")) != (BY, resumed):
            raise SearchError(
                f"profile {name!r} is in the bundle already; --overwrite replaces it, --resume goes on with the search "
                "that wrote it, or give another --profile",
                param="profile",
            )
    _with_profile(spec, name, ProfileSpec(weights={spec.lanes[-1]: 1.0}), set_default=False)


def write_profile(
    folder: Path,
    name: str,
    weights: Mapping[str, float] | PredictorSpec,
    origin: Mapping[str, Any],
    *,
    set_default: bool,
    overwrite: bool,
    resumed: str | None = None,
    scorers: Mapping[str, Any] | None = None,
    scorers_folder: Path | None = None,
) -> None:
    """Write the profile, and the scorers that found it, into `bundle.yaml`, atomically.

    weights: or a predictor, already stored in the bundle.
    scorers: name -> specification; they replace the bundle's scorers of the same names. scorers_folder: where their
    relative paths start.

    The file is read again first, to keep changes made meanwhile. Raises `SearchError`, `BundleError`.
    """
    spec = read_spec(folder / BUNDLE_FILE)
    check_profile(spec, name, overwrite=overwrite, resumed=resumed)
    said = {"predictor": weights} if isinstance(weights, PredictorSpec) else {"weights": dict(weights)}
    profile = ProfileSpec.model_validate({**said, "origin": dict(origin)})
    stored, files = store_scorers(folder, scorers or {}, scorers_folder)
    kept = {"scorers": {**spec.scorers, **stored}, "scorer_files": {**spec.scorer_files, **files}}
    write_spec(folder, _with_profile(spec, name, profile, set_default=set_default, **kept))


def origin_of(report: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Provenance from a search's report: prompts by hash, scorers, scores with intervals, the command."""
    found = report["candidates"][0]
    single = next(entry for entry in report["candidates"] if entry["name"] == "best single objective")
    method = report["method"] if report["levels"] is None else f"{report['method']}, {report['space']}"
    return {
        "by": BY,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "method": method,
        "evaluations": report["evaluations"]["requested"],
        "goal": report["goal"],
        "scorers": report["scorers"],
        "search_prompts": report["prompts"]["search"],
        "search_score": round(found["search"]["score"], 6),
        "held_out_prompts": report["prompts"]["held_out"],
        "held_out_score": round(found["held_out"]["score"], 6),
        "held_out_interval": [round(bound, 6) for bound in found["held_out"]["interval"]],
        "best_single_objective": {
            "weights": {name: value for name, value in single["weights"].items() if value},
            "held_out_score": round(single["held_out"]["score"], 6),
            "held_out_interval": [round(bound, 6) for bound in single["held_out"]["interval"]],
        },
    }


def _with_profile(
    spec: BundleSpec, name: str, profile: ProfileSpec, *, set_default: bool, **changed: object
) -> BundleSpec:
    """changed: other keys of `bundle.yaml`."""
    values = spec.model_dump() | changed
    values["profiles"][name] = profile.model_dump()
    if set_default:
        values["default_profile"] = name
    try:
        return BundleSpec.model_validate(values)
    except ValidationError as error:
        raise SearchError(explain(error), param="profile") from None
