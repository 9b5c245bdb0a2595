"""A causal language model's reading of a reply: its hidden states, and each token's likelihood after this prompt and
after another client's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emorl_core.scorers.base import ScorerError, batches, pick_device
from emorl_core.scorers.cross_encoder import load_pretrained, pick_max_length

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16"]
# An invented prompt: a reply that is as likely after this one is likely after any.
ELSEWHERE = "I lost my job in March and now I sit at home."
_LONGEST = 192  # tokens of prompt and reply, half each: the end of the prompt, the beginning of the reply
_TOGETHER = 16  # replies to one prompt that are read in one batch
_KEPT = 4096  # replies whose reading after `ELSEWHERE` is kept


@dataclass(frozen=True, slots=True)
class Reading:
    """For a reply of T tokens: `means` [D], the mean over its tokens of the states in the middle layer; `changed` [D],
    its difference from the mean after another client's prompt; `likely`, `other_likely` [T + 1], log-likelihoods of the
    tokens and the end after the two prompts."""

    means: torch.Tensor
    changed: torch.Tensor
    likely: torch.Tensor
    other_likely: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Pass:
    """A reply after one prompt: `means` [D] and `likely` [T + 1] of a `Reading`."""

    means: torch.Tensor
    likely: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Context:
    """A prompt that has been read: the state at its end [D], keys and values of each layer [1, heads, tokens, head]."""

    state: torch.Tensor
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class StateReader:
    """A causal model that reads replies. Raises `ScorerError` for a model without a trained head."""

    def __init__(self, where: str, revision: str | None, *, device: str, dtype: Dtype) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model, self.tokenizer, missing = load_pretrained(AutoModelForCausalLM, where, revision)
        if missing:
            raise ScorerError(f"model {where!r} has no trained head: it lacks {missing[0]}", param="model")
        self.model.to(device=pick_device(device), dtype=getattr(torch, dtype)).eval()
        self._middle = max(1, int(self.model.config.get_text_config().num_hidden_layers) // 2)
        self._half = min(_LONGEST, pick_max_length(None, self.model, self.tokenizer, where)) // 2
        self._opening, self._closing, self._end = self._ids("Client:"), self._ids("\nCounselor:"), self._ids("\n")[-1:]
        self._elsewhere: _Context | None = None
        self._kept: OrderedDict[tuple[int, ...], _Pass] = OrderedDict()  # replies after `ELSEWHERE`

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.get_text_config().hidden_size)

    def read(self, prompt: str, replies: Sequence[str]) -> list[Reading]:
        """One per reply, in order."""
        import torch

        ids = [(*self._ids(f" {reply}")[: self._half - len(self._end)], *self._end) for reply in replies]
        with torch.inference_mode():
            here, there = self._passes(self._context(prompt), ids), self._passes_elsewhere(ids)
        return [
            Reading(own.means, own.means - other.means, own.likely, other.likely)
            for own, other in zip(here, there, strict=True)
        ]

    def forget(self) -> None:
        """Drop what is kept of earlier replies, so that rounding does not depend on them."""
        self._kept.clear()

    def _passes_elsewhere(self, ids: Sequence[tuple[int, ...]]) -> list[_Pass]:
        """After another client's prompt; replies that were read before are not read again."""
        if self._elsewhere is None:
            self._elsewhere = self._context(ELSEWHERE)
        new = [own for own in dict.fromkeys(ids) if own not in self._kept]
        found = {own: self._kept[own] for own in ids if own in self._kept}
        found.update(zip(new, self._passes(self._elsewhere, new), strict=True))
        for own in dict.fromkeys(ids):
            self._kept[own] = found[own]
            self._kept.move_to_end(own)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return [found[own] for own in ids]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _context(self, prompt: str) -> _Context:
        import torch

        room = self._half - len(self._opening) - len(self._closing)
        ids = [*self._opening, *self._ids(f" {prompt}")[-room:], *self._closing]
        out = self.model.base_model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=True)
        layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return _Context(out.last_hidden_state[0, -1], layers)

    def _passes(self, context: _Context, ids: Sequence[tuple[int, ...]]) -> list[_Pass]:
        """Replies after `context`, read in batches of similar length; padded on the right, where nothing looks."""
        found: dict[int, _Pass] = {}
        for batch in batches([len(own) for own in ids], _TOGETHER):
            found.update(zip(batch, self._together(context, [ids[at] for at in batch]), strict=True))
        return [found[at] for at in range(len(ids))]

    def _together(self, context: _Context, replies: Sequence[tuple[int, ...]]) -> list[_Pass]:
        import torch
        from transformers import DynamicCache

        room, many = max(map(len, replies)), len(replies)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(context.layers):
            cache.update(keys.expand(many, -1, -1, -1), values.expand(many, -1, -1, -1), layer)
        out = self.model.base_model(
            input_ids=torch.tensor([[*own, *[0] * (room - len(own))] for own in replies], device=self.model.device),
            past_key_values=cache,
            output_hidden_states=True,
        )
        before = torch.cat([context.state.expand(many, 1, -1), out.last_hidden_state[:, :-1]], 1)
        found = []
        for row, own in enumerate(replies):
            logits = self.model.get_output_embeddings()(before[row, : len(own)]).float()
            likely = logits.log_softmax(-1)[range(len(own)), own].cpu()
            states = out.hidden_states[self._middle][row, : max(1, len(own) - 1)].float().mean(0).cpu()
            found.append(_Pass(states, likely))
        return found
