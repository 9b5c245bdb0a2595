"""A consistent snapshot of a bundle on disk: what is loaded and what is hashed are the same bytes.

A bundle may change while servers run: a new one is renamed into place, or an adapter is overwritten. So its folder is
held open, and every file that serving reads is checked (`stat`) before the first read and again after the last.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from emorl_core.bundles.bundle import BUNDLE_FILE, Bundle, bundle_folder, parse_spec, read_spec_bytes
from emorl_core.errors import BundleError, EmorlError
from emorl_core.files.hashes import folder_hash
from emorl_core.files.reading import Unreadable, check_regular

T = TypeVar("T")
Stamp = tuple[int, ...]
_ATTEMPTS = 5
# A file system's clock may tick only every 10 ms (HZ=100): a second change within one tick does not show.
_TICK_NS = 20_000_000


class Changed(BundleError):
    """A file of the bundle was changed while it was read."""

    code = "bundle_changed"


@dataclass(frozen=True, slots=True)
class Hashes:
    """SHA-256 of what was loaded: of `bundle.yaml`, and of each folder over the names and contents of its files."""

    bundle_yaml: str
    base: str
    adapters: dict[str, str]


class Snapshot:
    """`bundle` has the paths that messages name. Files are loaded through `base`, `adapters`, and `inside`, the bundle
    from which scorers and predictors are loaded. On Linux, where an open folder has a path of its own, these still lead
    to the folders that were opened, even if they are renamed. Elsewhere only `check` notices a rename.
    """

    def __init__(self, folder: Path) -> None:
        self._held: list[tuple[int, Path, Path]] = []  # descriptor, its path, the folder's own
        self._stamps: dict[Path, Stamp] = {}
        try:
            with self._named():
                held = self._hold(folder)
                data = read_spec_bytes(held / BUNDLE_FILE)
                self.bundle = Bundle(folder, parse_spec(data, folder / BUNDLE_FILE))
                self._yaml_hash = hashlib.sha256(data).hexdigest()
                inside = Bundle(held, self.bundle.spec)
                from_hub = self.bundle.spec.base.hub is not None
                self.base = self._hold(self.bundle.base_folder()) if from_hub else inside.base_folder()
                self.adapters = {name: inside.adapter_folder(name) for name in self.bundle.spec.adapted}
                self.scorers = [inside.scorer_folder(path) for path in self.bundle.spec.scorer_files]
                self.predictors = [inside.predictor_folder(name) for name in self.bundle.spec.predicted]
                self.inside = inside
                self._stamps = self._settled()
                if read_spec_bytes(held / BUNDLE_FILE) != data:
                    raise Changed(f"{folder / BUNDLE_FILE}: was changed while the bundle was opened; open it again")
        except BaseException:
            self.close()
            raise

    @classmethod
    @contextmanager
    def open(cls, where: str | os.PathLike[str], *, revision: str | None = None) -> Iterator[Snapshot]:
        """Open a folder or a hub id. Errors raised inside the block name the folders by their own paths.

        Raises:
            BundleError: as `Bundle.open`, for a folder that is not there, and for anything but files and folders in it.
        """
        snapshot = cls(bundle_folder(where, revision))
        try:
            with snapshot._named():
                yield snapshot
        finally:
            snapshot.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors of the folders held open. A pickled copy reads the same folders in a process that inherits
        them."""
        return tuple(descriptor for descriptor, _, _ in self._held)

    def check(self) -> None:
        """Raises `Changed` when a file was replaced or modified since the snapshot was opened."""
        try:
            now = self._look()
        except OSError as error:
            reason = "went away while the bundle was read; read it again when it is whole"
            raise Changed(f"{error.filename}: {reason}") from None
        if now != self._stamps:
            path = next(path for path in {**self._stamps, **now} if self._stamps.get(path) != now.get(path))
            raise Changed(f"{path}: was changed while the bundle was read; read it again when it is whole")

    def marks(self) -> list[Stamp]:
        """The files' stamps at opening; equal for two snapshots of the same files on one machine."""
        return sorted(self._stamps.values())

    def hashes(self) -> Hashes:
        """Blocking: reads every file once. Call `check` afterwards to know whether the hashes are consistent."""
        adapters = {name: folder_hash(folder) for name, folder in self.adapters.items()}
        return Hashes(self._yaml_hash, folder_hash(self.base), adapters)

    def close(self) -> None:
        for descriptor, _, _ in self._held:
            os.close(descriptor)
        self._held.clear()

    def _hold(self, folder: Path) -> Path:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"{folder}: cannot be read: {error.strerror}") from None
        path = Path(f"/proc/self/fd/{descriptor}")
        held = path if path.is_dir() else folder
        self._held.append((descriptor, held, folder))
        return held

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors raised in the block name folders as the user knows them."""
        try:
            yield
        except OSError as error:
            own = self._own(str(error.filename))
            if own == str(error.filename):
                raise
            raise BundleError(f"{own}: cannot be read: {error.strerror}") from None
        except Unreadable as error:
            raise BundleError(self._own(error.message)) from None
        except EmorlError as error:
            error.message = self._own(error.message)
            error.args = (error.message,)
            raise

    def _own(self, text: str) -> str:
        for _, held, folder in sorted(self._held, reverse=True):  # …/fd/75 before …/fd/7, which it begins with
            text = text.replace(str(held), str(folder))
        return text

    def _settled(self) -> dict[Path, Stamp]:
        """The stamps, all older than a tick of the file system's clock, so that every later change shows."""
        stamps = self._look()
        for _ in range(_ATTEMPTS):
            newest = max(max(stamp[4::5]) for stamp in stamps.values())
            if not 0 <= time.time_ns() - newest < _TICK_NS:
                break
            time.sleep(_TICK_NS / 1e9)
            stamps = self._look()
        return stamps

    def _look(self) -> dict[Path, Stamp]:
        """Every file and folder that serving reads, and the links on the way to them. Raises `Unreadable`, OSError."""
        spec = self._held[0][1] / BUNDLE_FILE
        stamps = {spec: _stamp(spec.stat())}
        for folder in (self.base, *self.adapters.values(), *self.scorers, *self.predictors):
            inside = next((held for _, held, _ in self._held if folder.is_relative_to(held)), folder)
            way = [inside]
            for part in folder.relative_to(inside).parts:
                way.append(way[-1] / part)
            stamps |= {path: _stamp(path.lstat()) for path in way[1:]}
            stamps |= _stamps_below(folder)
        return stamps


def steadily(where: str | os.PathLike[str], read: Callable[[Snapshot], T], *, revision: str | None = None) -> T:
    """Return what `read` returns for a bundle that did not change meanwhile; retry a few times where it did.

    Raises `BundleError`, and whatever `read` raises on an unchanged bundle.
    """
    left = _ATTEMPTS
    while True:
        left -= 1
        try:
            with Snapshot.open(where, revision=revision) as files:
                try:
                    result = read(files)
                except Exception:
                    files.check()  # the error may come from a change half-way through
                    raise
                files.check()
                return result
        except Changed:
            if not left:
                raise


def _stamps_below(folder: Path) -> dict[Path, Stamp]:
    def refuse(error: OSError) -> None:
        raise error

    stamps: dict[Path, Stamp] = {}
    for name, _, files in os.walk(folder, onerror=refuse):
        place = Path(name)
        stamps[place] = _stamp(place.stat())
        for path in (place / file for file in files):
            link = path.lstat()
            stamps[path] = _stamp(link)
            if stat.S_ISLNK(link.st_mode) and path.exists():
                link = path.stat()
                stamps[path] += _stamp(link)
            if not stat.S_ISLNK(link.st_mode):
                check_regular(link.st_mode, path)
    return stamps


def _stamp(found: os.stat_result) -> Stamp:
    # ctime is last: it also shows changes that were undone, and programs cannot set it.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
