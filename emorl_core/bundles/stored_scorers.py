"""The scorers of a bundle: stored after training or search, checked and loaded for serving."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from emorl_core.bundles.bundle import BUNDLE_FILE, FILE_PATTERNS, SCORERS_DIR, Bundle, BundleSpec
from emorl_core.errors import BundleError, cut
from emorl_core.files.hashes import folder_hash
from emorl_core.files.reading import files_below
from emorl_core.scorers import Checked, Context, ScorerError, build_scorer, parse_scorer, parts_of

_FOLDERS = ("model", "weights")  # keys of a specification that may name a folder; only `model` may be a hub id
_NAMED = 12  # hexadecimal digits of its hash in the name of a folder

# By name; None: of kind `callable`, where running code is not allowed.
Scorers = Mapping[str, Checked | None]


def store_scorers(bundle: Path, specs: Mapping[str, Any], base: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Copy the local folders that scorers read into `bundle/scorers/`; an existing folder is kept.

    Args:
        specs: name -> specification, as a recipe has it.
        base: the folder that relative paths of the specifications start from.

    Returns:
        `scorers` and `scorer_files` of `BundleSpec`. Models from the hub keep their ids.
    """
    files: dict[str, str] = {}

    def stored(model: str) -> str:
        source = Path(model).expanduser()
        source = source if base is None else base / source
        if not source.is_dir():
            return model
        copied, sha256 = _copy(source, bundle)
        files[copied] = sha256
        return copied

    return {name: _with_models(spec, stored) for name, spec in specs.items()}, files


def learned(spec: object) -> bool:
    """Whether a scorer depends on the training texts, which a bundle does not contain."""
    return any(part.reads_corpus for part in parts_of(parse_scorer(spec)))


def load_scorers(bundle: Bundle, *, device: str = "cpu", code: bool = False) -> dict[str, Checked | None]:
    """Load the scorers that a bundle names, after checking the hashes of their files.

    code: run those of kind `callable`, which are Python functions that the bundle names.

    Raises `BundleError`: files that are missing or do not match their hash, a model in the bundle without a hash, or a
    scorer that cannot be built, by its name.
    """
    spec = bundle.spec
    check_scorer_files(bundle)
    loaded: dict[str, Checked | None] = {}
    for name, given in spec.scorers.items():
        if _runs_code(given) and not code:
            loaded[name] = None
            continue
        try:
            loaded[name] = build_scorer(given, Context(device, bundle.folder), where=f"scorers.{name}")
        except ScorerError as error:
            raise BundleError(f"{BUNDLE_FILE}: scorers.{name}: {error.message}", param=f"scorers.{name}") from None
    return loaded


def check_scorer_files(bundle: Bundle) -> None:
    """Blocking: reads the files of all scorers. Raises `BundleError` as `load_scorers`."""
    spec = bundle.spec
    for path, sha256 in spec.scorer_files.items():
        found = folder_hash(bundle.scorer_folder(path))
        if found != sha256:
            raise BundleError(
                f"{BUNDLE_FILE}: scorer_files.{path} is {sha256}; the files have {found}: they are not those that were "
                "stored",
                param="scorer_files",
            )
    for name, key, named in _named(spec):
        folder = bundle.folder / Path(named).expanduser()
        if named not in spec.scorer_files and (key != "model" or folder.is_dir()):
            raise BundleError(
                f"{BUNDLE_FILE}: scorers.{name}: {key} is {cut(named)}; allowed: a folder of scorer_files"
                + (", or a hub id" if key == "model" else ""),
                param=f"scorers.{name}",
            )


def _named(spec: BundleSpec) -> Iterator[tuple[str, str, str]]:
    """(scorer's name, key, folder or hub id) for everything that scorers load."""
    for name, given in spec.scorers.items():
        for part in parts_of(parse_scorer(given)):
            for key in _FOLDERS:
                value = getattr(part, key, None)
                if isinstance(value, str):
                    yield name, key, value


def _runs_code(given: object) -> bool:
    return any(part.runs_code for part in parts_of(parse_scorer(given)))


def _with_models(spec: Any, stored: Callable[[str], str]) -> Any:
    """The specification as plain data, with each folder in it and in its parts replaced."""
    if isinstance(spec, str):
        return spec
    values = dict(spec)
    values |= {key: stored(values[key]) for key in _FOLDERS if isinstance(values.get(key), str)}
    if "of" in values:
        parts = values["of"]
        alone = isinstance(parts, (str, Mapping))
        values["of"] = _with_models(parts, stored) if alone else [_with_models(each, stored) for each in parts]
    return values


def _copy(source: Path, bundle: Path) -> tuple[str, str]:
    """Copy the files read of a checkpoint into a folder named by its hash, so that files in use never change."""
    unnamed = bundle / SCORERS_DIR / f"{source.resolve().name}.part"
    shutil.rmtree(unnamed, ignore_errors=True)
    unnamed.mkdir(parents=True)
    for path in sorted(files_below(source)):
        if path.is_file() and any(path.match(pattern) for pattern in FILE_PATTERNS):
            target = unnamed / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    sha256 = folder_hash(unnamed)
    named = unnamed.with_name(f"{source.resolve().name}-{sha256[:_NAMED]}")
    if named.is_dir():
        shutil.rmtree(unnamed)
    else:
        unnamed.rename(named)
    return f"{SCORERS_DIR}/{named.name}", sha256
