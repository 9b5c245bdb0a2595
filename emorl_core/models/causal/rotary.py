"""Rotary position embeddings (Su et al. 2021), with the library's own frequencies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = 512  # of the first table

# RoPE types whose angles depend only on a token's position.
_KINDS = frozenset({"default", "linear", "llama3", "yarn"})


class Rotary:
    """Cosines and sines by position, from a table that is computed by the library's module and grows by doubling."""

    def __init__(self, module: Any, like: Tensor) -> None:
        """module: the library's, (x, positions [1, P]) -> cosines and sines [1, P, d]; like: the model's number format
        and device."""
        self._module, self._like = module, like
        self._table = self._made(_ROWS)

    @staticmethod
    def takes(config: Any) -> bool:
        rope = getattr(config, "rope_parameters", None) or {}
        return rope.get("rope_type") in _KINDS and rope.get("partial_rotary_factor") in (None, 1.0)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [M, q] -> cosines and signed sines for `turned`, [M * q, 1, d] each."""
        most = int(positions.max()) + 1
        if most > self._table.shape[1]:
            self._table = self._made(max(most, 2 * self._table.shape[1]))
        cosines, sines = self._table[:, positions.reshape(-1)].unsqueeze(2)
        return cosines, sines

    @staticmethod
    def turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """x [M, q, heads, d] at the positions of `turn`: x cos + (-x2, x1) sin, where x = (x1, x2)."""
        cosines, sines = (part.view(*x.shape[:2], 1, -1) for part in turn)
        return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, dims=-1), sines)

    def _made(self, positions: int) -> Tensor:
        """[2, P, d]; the sign of (-x2, x1) is included in the sines."""
        # The table may first be needed in inference mode, but is kept for use outside it.
        with torch.inference_mode(False), torch.no_grad():
            places = torch.arange(positions, device=self._like.device)[None]
            cosines, sines = (part[0] for part in self._module(self._like, places))
            half = sines.shape[-1] // 2
            return torch.stack([cosines, torch.cat([-sines[:, :half], sines[:, half:]], dim=-1)])
