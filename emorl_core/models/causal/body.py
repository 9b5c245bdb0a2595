"""What turns tokens into last hidden states: the library's own modelling code, which runs any admitted model."""

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
    """A decoder in lanes."""

    @property
    def decoder(self) -> nn.Module: ...

    @property
    def routed(self) -> frozenset[str]:
        """Linear layers that see a part of the tokens only, so take no adapter; known after a first pass."""

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every linear layer: the names of its fused projections in the checkpoint, in order, and the layer."""

    def share(self, head: FrozenMatrix) -> FrozenMatrix | None:
        """Use this matrix as the embedding too if the two are tied. Returns the embedding, if rows of it are looked up
        here."""

    def tensors(self) -> Iterator[Tensor]:
        """Parameters beside the embedding of `share`, the matrices of `linears` and their biases."""

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor:
        """As `CausalModel.run`."""


class LibraryBody:
    """transformers' decoder over lane-aware linears."""

    def __init__(self, library: Any) -> None:
        """library: the `...ForCausalLM` whose decoder it is, which is changed."""
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
        """The library's own code looks rows up."""

    def tensors(self) -> Iterator[Tensor]:
        stacked = {id(parameter) for layer in self._layers for parameter in layer.linear.parameters()}
        yield from (parameter for parameter in self.decoder.parameters() if id(parameter) not in stacked)
        yield from (layer.bias for layer in self._layers if layer.bias is not None)

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor:
        self._rows.set(lanes, tokens.numel())
        out = self.decoder(input_ids=tokens, position_ids=positions, use_cache=False, **{KEYWORD: seen})
        hidden: Tensor = out[0]
        return hidden
