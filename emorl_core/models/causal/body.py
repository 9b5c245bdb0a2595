"""From tokens to last hidden states: transformers' own modelling code, which runs every supported model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.causal.attention import KEYWORD, NAME, Pass
from emorl_core.models.causal.linears import Rows, replace_linears


class Body(Protocol):
    """A decoder whose rows run in lanes."""

    @property
    def decoder(self) -> nn.Module: ...

    @property
    def routed(self) -> frozenset[str]:
        """Linear layers that process only some of the tokens, so they take no adapter; known after the first pass."""

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every linear layer: the checkpoint names of its fused projections, in order, and the layer."""

    def share(self, head: FrozenMatrix) -> FrozenMatrix | None:
        """Use this matrix as the embedding too if the two are tied. Returns the embedding if this class looks up its
        rows."""

    def tensors(self) -> Iterator[Tensor]:
        """All parameters except the embedding of `share` and the matrices and biases of `linears`."""

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor:
        """As `CausalModel.run`."""


class LibraryBody:
    """transformers' decoder with lane-aware linear layers."""

    def __init__(self, library: Any) -> None:
        """library: the `...ForCausalLM` that has the decoder; it is modified."""
        self._rows = Rows()
        decoder = library.get_decoder()
        self._layers = replace_linears(library, decoder, self._rows)
        library.set_attn_implementation(NAME)
        self.decoder: nn.Module = decoder.eval().requires_grad_(False)

    @property
    def routed(self) -> frozenset[str]:
        return frozenset(self._rows.routed)

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        for layer in self._layers:
            yield [layer.name], layer.linear

    def share(self, head: FrozenMatrix) -> None:
        """None: the library's own code looks up the rows."""

    def tensors(self) -> Iterator[Tensor]:
        stacked = {id(parameter) for layer in self._layers for parameter in layer.linear.parameters()}
        yield from (parameter for parameter in self.decoder.parameters() if id(parameter) not in stacked)
        yield from (layer.bias for layer in self._layers if layer.bias is not None)

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor:
        self._rows.set(lanes, tokens.numel())
        out = self.decoder(input_ids=tokens, position_ids=positions, use_cache=False, **{KEYWORD: seen})
        hidden: Tensor = out[0]
        return hidden
