"""Data-parallel training through accelerate: prompts are distributed, gradients summed, decisions identical.

Every process sees all results and decides from them, so that all run the same number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from training.config import RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
Precision = Literal["no", "bf16"]


class Processes:
    """A single process when the program was not started by `accelerate launch` or torchrun."""

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: Precision = "no",
        trackers: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        """folder: for trackers that write files."""
        from accelerate import Accelerator

        if device not in ("auto", "cpu") and not device.startswith("cuda"):
            raise RecipeError(f"compute.device is {device!r}; allowed: auto, cpu, cuda", param="compute.device")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise RecipeError(f"compute.device is {device!r}; this machine has no CUDA device", param="compute.device")
        self._accelerator: Accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision=precision, log_with=list(trackers) or None, project_dir=folder
        )
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index
        self.is_main: bool = self._accelerator.is_main_process

    def autocast(self) -> AbstractContextManager[object]:
        return self._accelerator.autocast()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part: every `count`-th item."""
        return list(items[self.index :: self.count])

    def gather_objects(self, value: T) -> list[T]:
        """One value of every process, by rank."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[T] = gather_object([value])
        return found

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in one all-reduce."""
        if self.count == 1 or not tensors:
            return
        flat = self._accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduction="sum")
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def start_trackers(self, name: str, config: dict[str, Any]) -> None:
        self._accelerator.init_trackers(name, config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        """Send metrics to the trackers, from the main process."""
        self._accelerator.log(values, step=step)

    def close(self) -> None:
        """Flush and end the trackers."""
        self._accelerator.end_training()


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """The results of all processes' shares, in the original order."""
    longest = max(len(part) for part in parts)
    return [part[place] for place in range(longest) for part in parts if place < len(part)]
