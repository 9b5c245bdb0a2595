"""The demo's bundle: adapters included in this package, for a base that is downloaded once or given."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from emorl_cli.demo import base as demo_base
from emorl_core.bundles.bundle import (
    ADAPTERS_DIR,
    BASE_DIR,
    BUNDLE_FILE,
    BaseRef,
    copy_checkpoint,
    read_spec,
    write_spec,
)
from emorl_core.files.reading import is_folder
from emorl_core.files.writing import appearing
from training.pipeline.demo_folder import alone, check_target, key_of, write_receipt
from training.progress import Progress

FILES = Path(__file__).with_name("files")  # bundle.yaml, and the adapters with their cards
_FORMAT = 1  # incremented when code outside those files changes the bundle


def cache() -> Path:
    """Raises `RuntimeError` for a user without a home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emorl"


def key(base: str | None = None) -> str:
    """The build key: a hash of the adapters, of bundle.yaml and of the base's name."""
    where = demo_base.GGUF_SHA256 if base is None else str(Path(base).resolve() if is_folder(Path(base)) else base)
    digest = hashlib.sha256(f"{_FORMAT}:{where}".encode())
    for path in sorted(path for path in FILES.rglob("*") if path.is_file()):
        digest.update(path.relative_to(FILES).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def default_folder(base: str | None = None) -> Path:
    """One folder per kind and version of the demo, so that a new version never serves or overwrites an old bundle."""
    return cache() / f"demo-{key(base)[:12]}"


def base_in_cache() -> Path:
    """Where the converted model is stored, for the bundles of all versions of the demo."""
    return cache() / f"{demo_base.NAME}-{demo_base.GGUF_SHA256[:12]}"


def is_made(folder: Path, base: str | None = None) -> bool:
    """Whether `folder` contains the finished bundle with unchanged weights."""
    if key_of(folder) != key(base):
        return False
    return base is not None or demo_base.is_sound(folder / BASE_DIR)


def make(folder: Path, *, base: str | None = None, rebuild: bool = False, progress: Progress) -> None:
    """Build the bundle in `folder`, atomically. In the cache it has a link to the base; elsewhere it contains all its
    files.

    base: a checkpoint folder or a hub id instead of the demo's own model.

    Raises:
        DemoError: `folder` contains something else, or the model cannot be fetched.
    """
    check_target(folder)
    with alone(folder):
        if not rebuild and is_made(folder, base):
            return
        spec = read_spec(FILES / BUNDLE_FILE)
        with appearing(folder, replace=True) as made:
            shutil.copytree(FILES / ADAPTERS_DIR, made / ADAPTERS_DIR)
            if base is None:
                _put_own_base(made / BASE_DIR, folder, rebuild=rebuild, progress=progress)
            elif not is_folder(Path(base)):
                spec = spec.model_copy(update={"base": BaseRef(hub=base)})
            elif _in_cache(folder):
                (made / BASE_DIR).symlink_to(Path(base).resolve())
            else:
                copy_checkpoint(Path(base), made / BASE_DIR)
            write_spec(made, spec)
            write_receipt(made, key(base), "come with emorl; their cards lie beside them")


def _put_own_base(place: Path, folder: Path, *, rebuild: bool, progress: Progress) -> None:
    """place: below what becomes `folder`."""
    if _in_cache(folder):
        known = base_in_cache()
        if rebuild or not demo_base.is_sound(known):
            demo_base.make_base(known, progress)
        place.symlink_to(Path("..") / known.name)
    elif not rebuild and _has_cache() and demo_base.is_sound(base_in_cache()):
        copy_checkpoint(base_in_cache(), place)
    else:
        demo_base.make_base(place, progress)


def _has_cache() -> bool:
    """Not for a user without a home, as in some containers."""
    try:
        cache()
    except RuntimeError:
        return False
    return True


def _in_cache(folder: Path) -> bool:
    return _has_cache() and folder.parent == cache()
