"""The predictors of a bundle's profiles: stored after fitting, checked and loaded for serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from emorl_core.bundles.bundle import BUNDLE_FILE, PREDICTORS_DIR, Bundle
from emorl_core.bundles.predictor import Array, Predictor
from emorl_core.errors import BundleError
from emorl_core.files.hashes import folder_hash
from emorl_core.files.reading import Unreadable, read_bytes
from emorl_core.files.writing import appearing

PREDICTOR_FILE = "predictor.safetensors"
_NAMED = 12  # hexadecimal digits of its hash in the name of a folder
_MOST_BYTES = 2**26


def store_predictor(bundle: Path, predictor: Predictor) -> tuple[str, str]:
    """Write a predictor into a folder of `bundle/predictors/` named by its hash, so that files in use never change.
    Returns the folder inside the bundle and its SHA-256."""
    unnamed = bundle / PREDICTORS_DIR / "new"
    with appearing(unnamed, replace=True) as folder:
        values = {"mean": predictor.mean, "scale": predictor.scale, "head": predictor.head, "bias": predictor.bias}
        save_file({key: np.ascontiguousarray(value) for key, value in values.items()}, folder / PREDICTOR_FILE)
    sha256 = folder_hash(unnamed)
    named = unnamed.with_name(sha256[:_NAMED])
    if named.is_dir():
        (unnamed / PREDICTOR_FILE).unlink()
        unnamed.rmdir()
    else:
        unnamed.rename(named)
    return f"{PREDICTORS_DIR}/{named.name}", sha256


def load_predictors(bundle: Bundle) -> dict[str, Predictor]:
    """Predictors by profile. Raises `BundleError` for files that are missing, do not match their hash, or are no
    predictor."""
    loaded = {}
    for name in bundle.spec.predicted:
        spec = bundle.spec.profiles[name].predictor
        assert spec is not None  # it is predicted
        folder, key = bundle.predictor_folder(name), f"profiles.{name}.predictor"
        found = folder_hash(folder)
        if found != spec.sha256:
            raise BundleError(
                f"{BUNDLE_FILE}: {key}.sha256 is {spec.sha256}; the files have {found}: they are not those that were "
                "stored",
                param=key,
            )
        loaded[name] = _read(folder / PREDICTOR_FILE, len(spec.objectives), key)
    return loaded


def _read(path: Path, objectives: int, key: str) -> Predictor:
    try:
        values = load(read_bytes(path, most=_MOST_BYTES))
    except Unreadable as error:
        raise BundleError(f"{BUNDLE_FILE}: {key}: {error.message}", param=key) from None
    except SafetensorError as error:
        raise BundleError(f"{BUNDLE_FILE}: {key}: {path.name} is no safetensors file: {error}", param=key) from None
    size = values["mean"].size if "mean" in values else 0
    shapes = {"mean": (size,), "scale": (size,), "head": (objectives, size), "bias": (objectives,)}
    found = {name: array.shape for name, array in values.items()}
    if found != shapes or any(array.dtype != np.float64 for array in values.values()):
        raise BundleError(
            f"{BUNDLE_FILE}: {key}: {path.name} holds "
            + ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in sorted(values.items()))
            + f"; allowed: mean [D], scale [D], head [{objectives}, D] and bias [{objectives}] in float64",
            param=key,
        )
    if not all(np.isfinite(array).all() for array in values.values()) or not (values["scale"] > 0).all():
        raise BundleError(
            f"{BUNDLE_FILE}: {key}: {path.name} holds numbers that are not finite, or a scale of 0 or less", param=key
        )
    return Predictor(*(_own(values[name]) for name in ("mean", "scale", "head", "bias")))


def _own(values: Array) -> Array:
    return np.array(values, dtype=np.float64)
