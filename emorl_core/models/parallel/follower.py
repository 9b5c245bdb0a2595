"""All ranks but 0: execute rank 0's commands on their part of the model."""

from __future__ import annotations

from typing import Any

import torch

from emorl_core.lanes.index import LaneIndex
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.parallel.part import Part


class Follower:
    """The counterpart of `Leader`."""

    def __init__(self, model: CausalModel, group: ProcessGroup) -> None:
        """model: this process's part, with its adapters."""
        self._part, self._group = Part(model, group), group
        self._device, self._adapters = model.facts.device, len(model.adapters)
        self._lanes: LaneIndex | None = None  # lanes of the last step

    def run(self) -> None:
        """Run forever; raises the error that ends it: a failed command, or the loss of rank 0."""
        while True:
            gone, name, *arguments = self._group.hear()
            for number in gone:
                self._part.drop(number)
            self._obey(name, arguments)

    def _obey(self, name: str, arguments: list[Any]) -> None:
        part = self._part
        match name, arguments:
            case "step", [number, tokens, points]:
                if points is not None:
                    self._lanes = LaneIndex.of(points, self._adapters, self._device)
                assert self._lanes is not None  # sent with the first step
                part.step(number, torch.tensor(tokens, device=self._device), self._lanes)
            case "head", [rows, capped]:
                part.head(rows, capped, None)
            case "head_rows", [token_ids]:
                part.head_rows(torch.tensor(token_ids, dtype=torch.int64, device=self._device))
            case "prefill", [readings]:
                part.prefill(readings, None)
            case "insert", [number, tokens]:
                part.insert(number, tokens, None)
            case _:  # commands with the same arguments on all ranks
                getattr(part, name)(*arguments)
