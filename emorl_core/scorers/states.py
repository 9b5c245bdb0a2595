"""A causal language model's reading of a reply: its hidden states, and each token's likelihood after this prompt and
after another client's."""

from __future__ import annotations

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
_TOGETHER = 8  # replies to one prompt that are read in one batch


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
class _Context:
    """A prompt that has been read: the state at its end [D], keys and values of each layer [1, heads, tokens, head]."""

    state: torch.Tensor
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    length: int


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

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.get_text_config().hidden_size)

    def read(self, prompt: str, replies: Sequence[str]) -> list[Reading]:
        """One per reply, in order."""
        import torch

        ids = [[*self._ids(f" {reply}")[: self._half - len(self._end)], *self._end] for reply in replies]
        found: dict[int, Reading] = {}
        with torch.inference_mode():
            if self._elsewhere is None:
                self._elsewhere = self._context(ELSEWHERE)
            contexts = [self._context(prompt), self._elsewhere]
            for batch in batches([len(own) for own in ids], _TOGETHER):
                found.update(zip(batch, self._behind(contexts, [ids[at] for at in batch]), strict=True))
        return [found[at] for at in range(len(replies))]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _context(self, prompt: str) -> _Context:
        import torch

        room = self._half - len(self._opening) - len(self._closing)
        ids = [*self._opening, *self._ids(f" {prompt}")[-room:], *self._closing]
        out = self.model.base_model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=True)
        layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return _Context(out.last_hidden_state[0, -1], layers, len(ids))

    def _behind(self, contexts: Sequence[_Context], replies: Sequence[list[int]]) -> list[Reading]:
        """`replies` after each of `contexts`; contexts are padded on the left, replies on the right."""
        import torch
        from transformers import DynamicCache

        width, room = max(context.length for context in contexts), max(map(len, replies))
        many, device = len(replies), self.model.device
        cache = DynamicCache()
        for layer in range(len(contexts[0].layers)):
            kept = [_padded([context.layers[layer][which] for context in contexts], width, many) for which in (0, 1)]
            cache.update(*kept, layer)
        mask = torch.tensor(
            [[0] * (width - each.length) + [1] * (each.length + room) for each in contexts], device=device
        ).repeat_interleave(many, 0)
        ids = torch.tensor([[*own, *[0] * (room - len(own))] for own in replies], device=device)  # [replies, tokens]
        out = self.model.base_model(
            input_ids=ids.repeat(len(contexts), 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1)[:, -room:],
            past_key_values=cache,
            output_hidden_states=True,
        )
        first = torch.stack([each.state for each in contexts]).repeat_interleave(many, 0)
        before = torch.cat([first[:, None], out.last_hidden_state[:, :-1]], 1)
        found = []
        for at, own in enumerate(replies):
            rows = range(at, len(contexts) * many, many)
            end = len(own) - 1
            logits = self.model.get_output_embeddings()(before[rows, : len(own)]).float()
            likely = logits.log_softmax(-1)[:, range(len(own)), own].cpu()
            states = out.hidden_states[self._middle][rows, : max(1, end)].float().mean(1).cpu()  # [contexts, D]
            found.append(Reading(states[0], states[0] - states[1], likely[0], likely[1]))
        return found


def _padded(layers: Sequence[torch.Tensor], width: int, many: int) -> torch.Tensor:
    """[1, heads, tokens, head] for each context -> [contexts · many, heads, width, head]."""
    import torch

    rows = [torch.nn.functional.pad(each, (0, 0, width - each.shape[2], 0)) for each in layers]
    return torch.cat(rows).repeat_interleave(many, 0)
