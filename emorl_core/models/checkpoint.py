"""Reading Hugging Face checkpoints: safetensors only, one file or several with an index."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emorl_core.errors import UnsupportedModel
from emorl_core.files import Unreadable, open_regular

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a checkpoint by name, read on demand, converted to one dtype and device."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._files: dict[str, Path] = {}
        if (folder / _INDEX).is_file():
            self._files = _indexed(folder)
        elif (folder / _SINGLE).is_file():
            with _opened(folder / _SINGLE) as handle:
                self._files = dict.fromkeys(handle.keys(), folder / _SINGLE)
        else:
            other = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
            hint = f"; {other[0]} is a pickle, which is not loaded: save it as safetensors first" if other else ""
            raise UnsupportedModel(f"{folder}: no {_SINGLE} and no {_INDEX}{hint}")

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
        # A copy: safetensors maps the file, and what is written into it later would be served.
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)


def _indexed(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file beside the index that holds it."""
    try:
        names = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        if any(Path(file).name != file for file in names.values()):
            raise ValueError  # a checkpoint may come from a stranger: it reads files of its own folder only
        return {name: folder / file for name, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UnsupportedModel(f"{_INDEX}: must hold weight_map, tensor name -> file name in the same folder") from None


def _opened(path: Path):  # type: ignore[no-untyped-def]  # safetensors ships no type for its handle
    try:
        open_regular(path).close()  # safetensors says "No such file" of one that may not be read, and waits for a FIFO
        return safe_open(path, framework="pt")
    except Unreadable as error:
        raise UnsupportedModel(f"{path.name}: cannot be read as safetensors: {error.reason}") from None
    except (SafetensorError, OSError) as error:
        raise UnsupportedModel(f"{path.name}: cannot be read as safetensors: {error}") from None
