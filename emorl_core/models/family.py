"""The interface between a model and the engine and training. Nothing above it knows whether a model has an encoder.

Letters: M lane rows, N adapters, q new tokens a row, R new tokens of all rows, T reply tokens, D hidden, V
vocabulary.
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
from emorl_core.models.compiling import Compilation
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.shape import Shape
from emorl_core.types import Quantize


@dataclass(frozen=True, slots=True)
class Facts:
    """Constant properties of a loaded model."""

    architecture: str  # the family's name
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int | None  # prompt and reply together; None: any length
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Passage:
    """What prefill reads for a lane row before tokens are fed to it. Equal leading labels give equal keys and values,
    so a common prefix is read once.

    A decoder-only model has one label per token and can stop after any of them. An encoder reads all tokens at once, so
    it has one label.
    """

    labels: tuple[Hashable, ...]
    width: int = 1  # tokens per label


@dataclass(frozen=True, slots=True)
class Piece:
    """Labels start .. stop - 1 of a passage, to be read after `past`, the memory of earlier labels; None if there are
    none."""

    passage: Passage
    start: int
    stop: int
    past: Memory | None = None

    @classmethod
    def whole(cls, passage: Passage) -> Piece:
        return cls(passage, 0, len(passage.labels))


@dataclass(frozen=True, slots=True)
class Group:
    """k replies to one prompt in one lane, for training; without start token."""

    lane: Lane
    replies: tuple[tuple[int, ...], ...]


class LaneModel(Protocol):
    """A base model with stacked adapters, ending at last hidden states.

    For each row, `prefill` reads its `passage`, at once or in pieces, into a `Memory`, which is inserted into a cache.
    The `unread` tokens are then fed with `step`; the hidden state of the last one determines the next token, and so on.
    """

    @property
    def facts(self) -> Facts: ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the N stacked adapters, in the order of a lane's coefficients."""

    @property
    def compiled(self) -> bool:
        """Whether `step` is compiled, which may change rounding."""

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every adaptable layer: the names of its fused projections as adapters name them, in order, and the layer."""

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        """Stack these adapters; they must fit (raises AdapterError). With `training` they require gradients."""

    def quantize(self, how: Quantize) -> None:
        """Quantise the base's matrices, but not adapters and norms. Only before adapters are attached, on a CPU, and
        not for training."""

    def compilation(self, folder: Path, *, ragged: bool = False) -> Compilation[Any]:
        """The compilation of this model's `step`, and of `ragged_step` if requested, for the adapters attached now.
        folder: where compiled functions are stored. Raises UnsupportedModel if there is none."""

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}"""

    # -- prompts -------------------------------------------------------------------------------------------------

    def passage(self, lane: Lane, reply: Sequence[int]) -> Passage:
        """What `prefill` reads for a lane row with this prompt and these tokens of the reply; may be empty."""

    def prefill(self, pieces: Sequence[Piece]) -> list[Memory]:
        """Read these pieces independently, and return what each adds to the memory of its passage."""

    def unread(self, lane: Lane, reply: Sequence[int]) -> tuple[int, ...]:
        """The tokens to feed after the passage, at least one: the decoder's start token and the reply, or the last
        token. The last of them is fed by the next step."""

    def acting(self, lane: Lane) -> Coefficients:
        """The coefficients for the unread tokens and the reply: the lane's, without activated adapters whose invocation
        tokens are not in the prompt."""

    def already_said(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The tokens before the reply that count for the repetition penalty."""

    # -- decoding ------------------------------------------------------------------------------------------------

    def new_cache(self) -> KVCache:
        """An empty cache for this model's shapes."""

    def step(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """Feed tokens [M, q] to the cache's M rows, with `lanes` of M rows; returns last hidden states [M, q, D].

        Writes keys and values at each row's own length and advances the cache by q. A call with the same `lanes` object
        means the same rows, one step later. The result is valid until the next call.
        """

    def ragged_step(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor:
        """The same with different numbers of tokens, at least one, for the M rows: tokens [R], row after row, with
        `lanes` of R rows; returns last hidden states [R, D]."""

    def head(self, hidden: Tensor) -> Tensor:
        """[B, D] -> logits [B, V] float32. Any scale of the architecture belongs here."""

    def uncapped_head(self, hidden: Tensor) -> Tensor:
        """The same before any cap, which is monotonic: affine in `hidden`."""

    def head_rows(self, token_ids: Tensor) -> Tensor:
        """[...] -> the head's rows [..., D] float32, scale included: logit = row . hidden."""


class TrainableModel(LaneModel, Protocol):
    """Additional methods for training: whole replies under autograd."""

    @property
    def lanes_apart(self) -> bool:
        """Whether a prompt's lanes can run in different passes without extra cost, so that replies of similar length
        can run together."""

    def reply_hidden(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """The last hidden states [M, T, D] from which each reply token is predicted, and the mask [M, T] of real
        tokens. Rows are the replies, group by group; all groups have the same number of replies."""

    def keeping_prompts(self) -> AbstractContextManager[None]:
        """Within the block, `reply_hidden` caches the prompts that no adapter acts on, so that they run once."""

    def train(self, mode: bool = True) -> Any:
        """Turn dropout on or off, as `torch.nn.Module.train`."""


class Family(Protocol):
    """Architectures with one implementation; only JSON files are read before loading."""

    name: str
    adapter_task: str  # PEFT's task type
    size_keys: tuple[str, ...]  # keys of config.json that describe the model's size

    def takes(self, config: Mapping[str, Any]) -> str | None:
        """None when a checkpoint with this config can be loaded, or one line that says why not and what works."""

    def shape(self, config: Mapping[str, Any]) -> Shape:
        """Sizes, for estimates. Raises UnsupportedModel for a config that lacks some."""

    def end_tokens(self, folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids that end a text, by the JSON files of a checkpoint folder. Raises UnsupportedModel for none."""

    def load(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        training: bool,
        group: ProcessGroup | None,
    ) -> TrainableModel:
        """Load a checkpoint folder (safetensors only). With `training` the base matrices stay usable by autograd.
        group: processes over which the model is split; all of them call this."""
