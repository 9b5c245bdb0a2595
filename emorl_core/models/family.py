"""What the engine and training ask of a model. Nothing above this file knows whether a model has an encoder.

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
    """What does not change while a model is loaded."""

    architecture: str  # the family's name
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int | None  # prompt and reply together; None: any length
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Passage:
    """What a lane row reads before tokens are fed to it. Passages that begin with equal labels leave equal keys and
    values there, so that what they have in common is read once.

    A decoder-only model has one label a token, and can stop after any of them. An encoder reads all tokens at once:
    one label.
    """

    labels: tuple[Hashable, ...]
    width: int = 1  # tokens a label


@dataclass(frozen=True, slots=True)
class Piece:
    """Labels start .. stop - 1 of a passage, to be read behind the memory of those before; None when there are none."""

    passage: Passage
    start: int
    stop: int
    past: Memory | None = None

    @classmethod
    def whole(cls, passage: Passage) -> Piece:
        return cls(passage, 0, len(passage.labels))


@dataclass(frozen=True, slots=True)
class Group:
    """k replies to one prompt in one lane, as training feeds them; no start token."""

    lane: Lane
    replies: tuple[tuple[int, ...], ...]


class LaneModel(Protocol):
    """A base model with stacked adapters, ending at last hidden states.

    A row's life: `prefill` reads its `passage`, at once or in pieces, and leaves a `Memory`, which is inserted into a
    cache; what is `unread` is fed with `step`; the hidden state of its last token chooses the next one, and so on.
    """

    @property
    def facts(self) -> Facts: ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the N stacked adapters, in the order of a lane's coefficients."""

    @property
    def compiled(self) -> bool:
        """Whether `step` is compiled: sums may then round differently."""

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every adaptable layer: the names of its fused projections as adapters name them, in order, and the layer."""

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        """Stack these adapters; they must fit (raises AdapterError). With `training` they require gradients."""

    def quantize(self, how: Quantize) -> None:
        """Keep the base's matrices in fewer bits from now on; adapters and norms stay. Before adapters are attached,
        on a CPU, not for training."""

    def compilation(self, folder: Path, *, ragged: bool = False) -> Compilation[Any]:
        """What gives this model with a faster `step` for the adapters attached now, and a faster `ragged_step` where
        that is asked for; folder: where compiled functions are kept. Raises UnsupportedModel where there is none."""

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}"""

    # -- prompts -------------------------------------------------------------------------------------------------

    def passage(self, lane: Lane, reply: Sequence[int]) -> Passage:
        """What `prefill` reads for a lane row that has its prompt and these tokens of the reply; may be empty."""

    def prefill(self, pieces: Sequence[Piece]) -> list[Memory]:
        """Read these pieces, each by itself, and return what each adds to the memory of its passage."""

    def unread(self, lane: Lane, reply: Sequence[int]) -> tuple[int, ...]:
        """What is still to be fed when the passage has been read, one token at least: the decoder's start token and the
        reply, or the last token of all. The last of these is fed by the next step."""

    def acting(self, lane: Lane) -> Coefficients:
        """What acts on the unread tokens and on the reply: the lane's coefficients, without those of adapters that wait
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

    def ragged_step(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor:
        """The same with a number of tokens of its own for each of the M rows, one at least: tokens [R], one row's after
        the other's, with `lanes` of R rows; returns last hidden states [R, D]."""

    def head(self, hidden: Tensor) -> Tensor:
        """[B, D] -> logits [B, V] float32. Any scale of the architecture belongs here."""

    def uncapped_head(self, hidden: Tensor) -> Tensor:
        """The same before any cap, which bends logits and changes no order: affine in `hidden`."""

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
    """Architectures that share one implementation; reads only JSON files until it loads."""

    name: str
    adapter_task: str  # PEFT's task type
    size_keys: tuple[str, ...]  # of config.json: what tells people how large a model is

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
        group: processes that hold a part each, which all call this."""
