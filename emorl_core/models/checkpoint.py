"""Reading Hugging Face checkpoints: safetensors only, one file or several with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emorl_core.errors import UnsupportedModel, cut
from emorl_core.files.reading import LFS_ADVICE, Unreadable, is_lfs_pointer, open_regular

_SINGLE = "model.safetensors"
_LONGEST_NAME = 255  # of a file, on every usual file system
_INDEX_SUFFIX = ".safetensors.index.json"
_INDEX = f"model{_INDEX_SUFFIX}"
# safetensors' names of the number formats that a plain checkpoint is stored in.
_FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What quantisation libraries call the tensors beside a packed matrix.
_QUANTISED = re.compile(r"scale|zero|absmax|SCB|g_idx|quant|packed")


class Checkpoint:
    """The tensors of a checkpoint by name, read on demand, converted to one dtype and device.

    Files are selected by transformers' rule: the one that `transformers_weights` of the config names, else
    `model.safetensors`, else all shards of `model.safetensors.index.json`.

    Raises:
        UnsupportedModel: no such file, a broken one, or a tensor in another format than plain floating point.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._files: dict[str, Path] = {}
        start = _weights_file(folder, config)
        weight_map = _weight_map(start) if start.name.endswith(_INDEX_SUFFIX) else {}
        for file in sorted(set(weight_map.values())) or [start.name]:
            self._add(folder / file)
        for name, file in weight_map.items():
            if name not in self._files:
                raise UnsupportedModel(f"{start.name}: says that {file} holds tensor {name!r}, which it does not")
        self._unread = set(self._files)

    def _add(self, path: Path) -> None:
        with _opened(path) as handle:
            for name in handle.keys():  # noqa: SIM118  a safetensors handle is no mapping
                if name in self._files:
                    raise UnsupportedModel(f"tensor {name!r} is in {self._files[name].name} and in {path.name}")
                stored = handle.get_slice(name).get_dtype()
                if stored not in _FORMATS:
                    raise UnsupportedModel(
                        f"{path.name}: tensor {name!r} is stored as {stored}; allowed: {', '.join(_FORMATS.values())}"
                        " (quantised bases are not supported)"
                    )
                self._files[name] = path

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor; refused when it is missing or has another shape than the config says."""
        if name not in self._files:
            raise UnsupportedModel(f"the checkpoint has no tensor {name!r}")
        with _opened(self._files[name]) as handle:
            tensor: Tensor = handle.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise UnsupportedModel(f"tensor {name!r} has shape {tuple(tensor.shape)}; the config asks for {shape}")
        self._unread.discard(name)
        # A copy, since safetensors maps the file, and later changes to it would be served.
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)

    def refuse_unread(self, harmless: Collection[str]) -> None:
        """Refuse tensors that were never read, since the model is then not the one that was saved.

        Raises:
            UnsupportedModel: one is left that is not among the `harmless`.
        """
        left = sorted(self._unread.difference(harmless))
        if left:
            many = f" and {len(left) - 1} more have" if len(left) > 1 else " has"
            hint = "; quantised bases are not supported" if any(map(_QUANTISED.search, left)) else ""
            raise UnsupportedModel(f"tensor {left[0]!r} of the checkpoint{many} no place in this model{hint}")


def _weights_file(folder: Path, config: Mapping[str, Any]) -> Path:
    """The file to begin with: weights, or the index of their shards."""
    named = config.get("transformers_weights")
    if named is not None:
        if not _is_file_name(named) or not named.endswith((".safetensors", _INDEX_SUFFIX)):
            raise UnsupportedModel(
                f"config.json: transformers_weights is {cut(named)}; allowed: a safetensors file of the same folder,"
                " or an index of such files"
            )
        return folder / named
    single, index = folder / _SINGLE, folder / _INDEX
    if index.is_file():
        _weight_map(index)  # a broken index means a broken copy, even where the single file is used
    if single.is_file() or index.is_file():
        return single if single.is_file() else index
    other = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    hint = f"; {other[0]} is a pickle, which is not loaded: save it as safetensors first" if other else ""
    raise UnsupportedModel(f"{folder}: no {_SINGLE} and no {_INDEX}{hint}")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> name of the file beside the index that holds it."""
    if is_lfs_pointer(index):
        raise UnsupportedModel(f"{index.name} {LFS_ADVICE}")
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not names or not all(map(_is_file_name, names.values())):
            raise ValueError
        return dict(names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnsupportedModel(
            f"{index.name}: must hold weight_map, tensor name -> file name in the same folder"
        ) from None


def _is_file_name(value: object) -> bool:
    """A checkpoint may be untrusted, so it may only name files in its own folder."""
    if not isinstance(value, str) or value in ("", "..") or "\0" in value:
        return False
    return len(value) <= _LONGEST_NAME and Path(value).name == value


def _opened(path: Path):  # type: ignore[no-untyped-def]  # safetensors ships no type for its handle
    if is_lfs_pointer(path):
        raise UnsupportedModel(f"{path.name} {LFS_ADVICE}")
    try:
        open_regular(path).close()  # safetensors says "No such file" of one that may not be read, and waits for a FIFO
        return safe_open(path, framework="pt")
    except Unreadable as error:
        raise UnsupportedModel(f"{path.name}: cannot be read as safetensors: {error.reason}") from None
    except (SafetensorError, OSError) as error:
        raise UnsupportedModel(f"{path.name}: cannot be read as safetensors: {error}") from None
