"""What the engine and training ask of a model. Nothing above this file knows whether a model has an encoder.

Letters: M lane rows, N adapters, q new tokens a row, T reply tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from emorl_core.adapters.adapter import Adapter
from emorl_core.cache.kv import KVCache, Memory
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Coefficients, Lane
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.shape import Shape


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while a model is loaded."""

    architecture: str  # the family's name
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int | None  # prompt and reply together; None: any length
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Group:
    """k replies to one prompt in one lane, as training feeds them; no start token."""

    lane: Lane
    replies: tuple[tuple[int, ...], ...]


class LaneModel(Protocol):
    """A base model with stacked adapters, ending at last hidden states.

    A row's life: `prefill` reads the prompt and leaves a `Memory`, which is inserted into a cache; the `first_tokens`
    are fed with `step`; the hidden state of the last one chooses the first token of the reply, and so on.
    """

    @property
    def facts(self) -> Facts: ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the N stacked adapters, in the order of a lane's coefficients."""

    @property
    def compiled(self) -> bool:
        """Whether `compile_step` is in force: sums may then round differently."""

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every adaptable layer: the names of its fused projections as adapters name them, in order, and the layer."""

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        """Stack these adapters; they must fit (raises AdapterError). With `training` they require gradients."""

    def compile_step(self) -> None:
        """Make `step` faster for the adapters attached now, at the cost of time here. Raises UnsupportedModel."""

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}"""

    # -- prompts -------------------------------------------------------------------------------------------------

    def prefill_key(self, lane: Lane) -> Hashable:
        """Lanes with the same key share one prefill."""

    def prefill(self, lanes: Sequence[Lane]) -> list[Memory]:
        """Read the prompts, each in its lane, and return what decoding needs of each."""

    def first_tokens(self, lane: Lane) -> tuple[int, ...]:
        """What is still to be fed when `prefill` is done, one token at least: the decoder's start token, or the part of
        the prompt that `prefill` left out."""

    def acting(self, lane: Lane) -> Coefficients:
        """What acts on the first tokens and on the reply: the lane's coefficients, without those of adapters that wait
        for tokens which its prompt does not have."""

    def already_said(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The tokens before the reply that count for the repetition penalty."""

    # -- decoding ------------------------------------------------------------------------------------------------

    def new_cache(self) -> KVCache:
        """An empty cache for this model's shapes."""

    def step(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """Feed tokens [M, q] to the cache's M rows, with `lanes` of M rows; returns last hidden states [M, q, D].

        Writes keys and values at each row's own length and advances the cache by q. Calls with the same `lanes` object
        are the same rows as before, one step later. The result is good until the next call.
        """

    def head(self, hidden: Tensor) -> Tensor:
        """[B, D] -> logits [B, V] float32. Any scale of the architecture belongs here."""

    def head_rows(self, token_ids: Tensor) -> Tensor:
        """[...] -> the head's rows [..., D] float32, scale included: logit = row . hidden."""


class TrainableModel(LaneModel, Protocol):
    """What training asks beyond that: whole replies under autograd."""

    @property
    def lanes_apart(self) -> bool:
        """Whether nothing is lost when a prompt's lanes run in different passes, so that replies of like length can
        run together."""

    def reply_hidden(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """The state that each reply token is chosen from: last hidden states [M, T, D], and mask [M, T] of the tokens
        that are there. Rows are the replies, group by group; all groups have the same number of them."""

    def keeping_prompts(self) -> AbstractContextManager[None]:
        """Within it, `reply_hidden` remembers the prompts that no adapter acts on: they run once for all its calls."""

    def train(self, mode: bool = True) -> Any:
        """Turn dropout on or off, as `torch.nn.Module.train`."""


class Family(Protocol):
    """Architectures that share one implementation; reads only `config.json` until it loads."""

    name: str
    adapter_task: str  # PEFT's task type
    size_keys: tuple[str, ...]  # of config.json: what tells people how large a model is

    def takes(self, config: Mapping[str, Any]) -> str | None:
        """None when a checkpoint with this config can be loaded, or one line that says why not and what works."""

    def shape(self, config: Mapping[str, Any]) -> Shape:
        """Sizes, for estimates. Raises UnsupportedModel for a config that lacks some."""

    def load(
        self, folder: Path, config: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype, training: bool
    ) -> TrainableModel:
        """Load a checkpoint folder (safetensors only). With `training` the base matrices stay usable by autograd."""
