"""The sizes of a model, for estimates of parameters and memory; read from a config, without its weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Linear layers of one kind: the last part of their name, features in and out, how many of them there are."""

    name: str
    in_features: int
    out_features: int
    count: int

    @property
    def parameters(self) -> int:
        return self.count * self.in_features * self.out_features


@dataclass(frozen=True, slots=True)
class TokenCost:
    """The memory per token: numbers kept by autograd, and keys and values kept by decoding."""

    activations: int  # without the adapters' low-rank columns
    adapted: int  # products that an adapter may touch: each keeps that adapter's rank of numbers
    keys_and_values: int  # while decoding
    trained_keys_and_values: int = 0  # computed apart, once a reply, under autograd

    def kept(self, ranks: int) -> int:
        """Numbers kept for the backward pass, with adapters of `ranks` in all."""
        return self.activations + self.adapted * ranks


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. `prompt` and `reply`: what a token of each costs in one lane row."""

    hidden: int
    vocabulary: int
    tied: bool  # the head is the embedding
    linears: tuple[LinearShape, ...]
    prompt: TokenCost
    reply: TokenCost
    other_parameters: int = 0  # beside embeddings and linear layers: norms, biases, fused experts

    def base_parameters(self) -> int:
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.other_parameters + sum(linear.parameters for linear in self.linears)

    def adapter_parameters(self, rank: int, targets: Collection[str] | None = None) -> int:
        """Of one adapter on all linear layers, or on those whose names are among `targets`."""
        chosen = [linear for linear in self.linears if targets is None or linear.name in targets]
        return sum(each.count * rank * (each.in_features + each.out_features) for each in chosen)
