"""The authors' published adapters: `.npz` with `<module>_loraA`, `<module>_loraB` and `<module>_scaling`.

A `.npz` is a zip of arrays. `numpy.load` is not used: of two arrays with one name it takes the last, it trusts an
array's header when allocating memory, and it inflates two megabytes to two gigabytes.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from emorl_core.adapters.adapter import MODULE_PREFIX, MOST_LETTERS, Adapter, LoraPair, checked_pair
from emorl_core.errors import AdapterError, one_line
from emorl_core.files.reading import LFS_ADVICE, Unreadable, is_lfs_pointer, open_regular

_PARTS = ("loraA", "loraB", "scaling")
# Trained numbers hardly shrink in a zip; zeros shrink a thousandfold. B starts as zeros, A never does.
_MOST_INFLATED = 64
_SMALL = 2**26  # bytes that any file may inflate to


def read_npz(path: Path, name: str) -> Adapter:
    """Read one adapter: `loraA` [r, in], `loraB` [out, r], `scaling` one number, for every module.

    Raises:
        AdapterError: one line that names the file or the adapter, the array and the reason.
    """
    try:
        if is_lfs_pointer(path):
            raise Unreadable(LFS_ADVICE)
        with open_regular(path) as file:
            arrays = _read_zip(file)
    except Unreadable as error:
        raise AdapterError(f"{path.name}: cannot be read as .npz: {error.reason}") from None
    halves: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        match = re.fullmatch(rf"(?:{re.escape(MODULE_PREFIX)})?(.+)_({'|'.join(_PARTS)})", key)
        if match is None:
            raise _refused(name, f"key {key!r} is not of the form <module>_loraA, <module>_loraB or <module>_scaling")
        parts = halves.setdefault(match[1], {})
        if match[2] in parts:
            raise _refused(name, f"module {match[1]!r} has {match[2]} twice, with and without {MODULE_PREFIX!r}")
        parts[match[2]] = array
    if not halves:
        raise _refused(name, "the file holds no module")
    return Adapter(name, {module: _pair(name, module, parts) for module, parts in halves.items()})


def _pair(name: str, module: str, parts: dict[str, np.ndarray]) -> LoraPair:
    missing = set(_PARTS) - set(parts)
    if missing:
        raise _refused(name, f"module {module!r} has no {', '.join(sorted(missing))}")
    scaling = parts["scaling"]
    if scaling.size != 1:
        raise _refused(name, f"module {module!r}: scaling holds {scaling.size} numbers; allowed: one")
    if scaling.dtype.kind not in "fiu":
        raise _refused(name, f"module {module!r}: scaling is of type {scaling.dtype}; allowed: a number")
    a, b = (_matrix(name, module, part, parts[part]) for part in ("loraA", "loraB"))
    return checked_pair(name, module, a, b, float(scaling.reshape(())))


def _matrix(name: str, module: str, part: str, array: np.ndarray) -> Tensor:
    # numpy has no bfloat16 and saves it as two bytes without a meaning.
    if array.dtype.kind != "f":
        raise _refused(
            name,
            f"module {module!r}: {part} is of type {array.dtype}; allowed: float16, float32, float64 "
            "(bfloat16 has to be converted before it is saved)",
        )
    with np.errstate(over="ignore"):  # what is beyond float32 becomes inf, which is refused with the rest
        return torch.from_numpy(array.astype(np.float32))


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    """Every array of the archive. Raises `Unreadable`."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            size = file.seek(0, io.SEEK_END)
            most = max(_SMALL, _MOST_INFLATED * size)
            if sum(entry.file_size for entry in entries) > most:
                raise Unreadable(f"its {size:,} bytes inflate to more than {most:,}, which no adapter does")
            arrays: dict[str, np.ndarray] = {}
            for entry in entries:
                key = entry.filename.removesuffix(".npy")
                if len(key) > MOST_LETTERS:
                    raise Unreadable(f"an array's name has {len(key):,} letters; allowed: up to {MOST_LETTERS}")
                if key in arrays:
                    raise Unreadable(f"it holds {key!r} twice")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise Unreadable(f"{key!r} is compressed by a method that numpy does not use")
                with archive.open(entry) as inside:
                    # The header is not trusted: reading stops one byte beyond the size that it claims.
                    data = inside.read(entry.file_size + 1)
                arrays[key] = _array(key, data)
            return arrays
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise Unreadable(one_line(error)) from None


def _array(key: str, data: bytes) -> np.ndarray:
    """One `.npy` file. Raises `Unreadable`, ValueError."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise Unreadable(f"{key!r} is not an array as numpy saves it") from None
    if dtype.hasobject:
        raise Unreadable(f"{key!r} holds Python objects, which are not loaded")
    count = math.prod(shape)
    start = stream.tell()
    if count * dtype.itemsize != len(data) - start:
        raise Unreadable(
            f"{key!r} has {len(data) - start} bytes of numbers; its header asks for {count * dtype.itemsize}"
        )
    array = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _refused(name: str, reason: str) -> AdapterError:
    return AdapterError(f"adapter {name!r}: {reason}", param=f"objectives.{name}.adapter")
