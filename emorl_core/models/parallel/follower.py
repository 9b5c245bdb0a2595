"""Every process but rank 0: does to its part what rank 0 says, until the end."""

from __future__ import annotations

from typing import Any

import torch

from emorl_core.lanes.index import LaneIndex
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.parallel.part import Part


class Follower:
    """The other side of `Leader`."""

    def __init__(self, model: CausalModel, group: ProcessGroup) -> None:
        """model: this process's part, with its adapters."""
        self._part, self._group = Part(model, group), group
        self._device, self._adapters = model.facts.device, len(model.adapters)
        self._lanes: LaneIndex | None = None  # of the last step

    def run(self) -> None:
        """For ever; raises what ends it: a command that fails here, or rank 0 gone."""
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
                assert self._lanes is not None  # told with the first step
                part.step(number, torch.tensor(tokens, device=self._device), self._lanes)
            case "head", [rows, capped]:
                part.head(rows, capped, None)
            case "head_rows", [token_ids]:
                part.head_rows(torch.tensor(token_ids, dtype=torch.int64, device=self._device))
            case "prefill", [readings]:
                part.prefill(readings, None)
            case "insert", [number, tokens]:
                part.insert(number, tokens, None)
            case _:  # what has the same arguments everywhere
                getattr(part, name)(*arguments)
