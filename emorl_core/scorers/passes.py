"""Passes of a frozen causal language model over replies: each prompt is read once for all replies to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from emorl_core.scorers.base import ScorerError, batches, pick_device
from emorl_core.scorers.cross_encoder import load_pretrained, pick_max_length

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16"]
_TOGETHER = 16  # replies to one prompt that are read in one batch
_KEPT = 8192  # replies whose readings are kept
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Pass:
    """A reply of T tokens and an end token after one prompt: `means` [D], the mean over its tokens of the states in the
    middle layer; `likely` [T + 1], log-likelihoods."""

    means: torch.Tensor
    likely: torch.Tensor


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """The state at a prompt's end [D], keys and values of each layer [1, heads, tokens, head]."""

    state: torch.Tensor
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class ModelPasses:
    """A causal model and its tokenizer. max_length: tokens of prompt and reply, by default all positions (at most 512).
    Raises `ScorerError` for a model without a trained head or with fewer positions."""

    def __init__(self, where: str, revision: str | None, *, device: str, dtype: Dtype, max_length: int | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model, self.tokenizer, missing = load_pretrained(AutoModelForCausalLM, where, revision)
        if missing:
            raise ScorerError(f"model {where!r} has no trained head: it lacks {missing[0]}", param="model")
        self.model.to(device=pick_device(device), dtype=getattr(torch, dtype)).eval()
        self.max_length = pick_max_length(max_length, self.model, self.tokenizer, where)
        self._middle = max(1, int(self.model.config.get_text_config().num_hidden_layers) // 2)

    def context(self, ids: Sequence[int]) -> ReadPrompt:
        import torch

        with torch.inference_mode():
            out = self.model.base_model(input_ids=torch.tensor([list(ids)], device=self.model.device), use_cache=True)
        layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return ReadPrompt(out.last_hidden_state[0, -1], layers)

    def after(self, prompt: ReadPrompt, replies: Sequence[tuple[int, ...]], together: int = _TOGETHER) -> list[Pass]:
        """One per reply (its tokens and an end token), in order. Replies of similar length are read in one batch,
        padded on the right, where nothing looks."""
        found: dict[int, Pass] = {}
        for batch in batches([len(own) for own in replies], together):
            found.update(zip(batch, self._batch(prompt, [replies[at] for at in batch]), strict=True))
        return [found[at] for at in range(len(replies))]

    def _batch(self, prompt: ReadPrompt, replies: Sequence[tuple[int, ...]]) -> list[Pass]:
        import torch
        from transformers import DynamicCache

        room, many = max(map(len, replies)), len(replies)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(prompt.layers):
            cache.update(keys.expand(many, -1, -1, -1), values.expand(many, -1, -1, -1), layer)
        found = []
        with torch.inference_mode():
            out = self.model.base_model(
                input_ids=torch.tensor([[*own, *[0] * (room - len(own))] for own in replies], device=self.model.device),
                past_key_values=cache,
                output_hidden_states=True,
            )
            before = torch.cat([prompt.state.expand(many, 1, -1), out.last_hidden_state[:, :-1]], 1)
            for row, own in enumerate(replies):
                logits = self.model.get_output_embeddings()(before[row, : len(own)]).float()
                likely = logits.log_softmax(-1)[range(len(own)), own].cpu()
                states = out.hidden_states[self._middle][row, : max(1, len(own) - 1)].float().mean(0).cpu()
                found.append(Pass(states, likely))
        return found


class Kept(Generic[V]):
    """The latest readings. What was read in one call is kept as a whole, since rounding depends on what is read
    together: a call gives the same readings whatever was read before it."""

    def __init__(self) -> None:
        self._calls: OrderedDict[Hashable, list[V]] = OrderedDict()
        self._replies = 0

    def get(self, call: Hashable) -> list[V] | None:
        if call in self._calls:
            self._calls.move_to_end(call)
        return self._calls.get(call)

    def put(self, call: Hashable, readings: list[V]) -> None:
        """call: not kept yet."""
        self._calls[call] = readings
        self._replies += len(readings)
        while self._replies > _KEPT:
            self._replies -= len(self._calls.popitem(last=False)[1])


class PassesAfter:
    """Passes after one prompt that is always the same. A call that was made before is not computed again."""

    def __init__(self, passes: ModelPasses, ids: Sequence[int]) -> None:
        self._passes, self._prompt = passes, passes.context(ids)
        self._kept: Kept[Pass] = Kept()

    def read(self, replies: Sequence[tuple[int, ...]]) -> list[Pass]:
        """One per reply, in order."""
        call = tuple(replies)
        found = self._kept.get(call)
        if found is None:
            distinct = list(dict.fromkeys(replies))
            passes = dict(zip(distinct, self._passes.after(self._prompt, distinct), strict=True))
            found = [passes[own] for own in replies]
            self._kept.put(call, found)
        return found
