"""The judge of the causal goldens, in other people's code, and the lockstep loop that it judges.

Separate Hugging Face models, all but the first wrapped by PEFT, no cache, no padding, the whole sequence again for
every token. What their heads are given is mixed, and goes through the base's own head once more: its scale, its bias
and its cap are the library's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.variants import calculate_alora_offsets
from torch import Tensor
from transformers import AutoModelForCausalLM

from emorl_core.cache.kv import KVCache
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Lane
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.family import Piece
from tests.builders import outdated_peft


class SeparateModels:
    """Lane 0 is the bare base, lane i the base with adapter folder i - 1, each a model of its own."""

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        bare = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
        self.models: list[Any] = [bare]
        for folder in adapters:
            with outdated_peft():
                self.models.append(PeftModel.from_pretrained(copy.deepcopy(bare), folder).eval())

    def hidden(self, ids: Tensor, prompt: int) -> Tensor:
        """[B, T] of which `prompt` tokens are the prompt -> what each model's head is given [N, B, T, D]."""
        return torch.stack([self.hidden_of(lane, ids, prompt) for lane in range(len(self.models))])

    def hidden_of(self, lane: int, ids: Tensor, prompt: int) -> Tensor:
        model, seen = self.models[lane], []
        options = {}
        if lane and model.active_peft_config.alora_invocation_tokens:  # as PEFT's generate has it: by the prompt alone
            offsets = calculate_alora_offsets(model.peft_config, model.active_adapter, ids[:, :prompt])
            options["alora_offsets"] = [None if o is None else o + ids.shape[1] - prompt for o in offsets]
        head = model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            model(input_ids=ids, use_cache=False, **options)
        finally:
            hook.remove()
        return seen[0]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]: the base model's own forward, its head's input replaced."""
        base = self.models[0]
        hook = base.get_output_embeddings().register_forward_pre_hook(lambda module, args: (hidden,))
        try:
            out = base(input_ids=torch.zeros(hidden.shape[:2], dtype=torch.int64), use_cache=False)
        finally:
            hook.remove()
        return out.logits.float()

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], mixes: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """One prompt under mixes [B, N] -> tokens [B, T] and the mixed logits of every step [B, T, V]."""
        ids = torch.tensor([list(prompt)] * len(mixes))
        steps = []
        for _ in range(tokens):
            mixed = torch.einsum("bn,nbd->bd", mixes, self.hidden(ids, len(prompt))[:, :, -1])
            steps.append(self.logits(mixed.unsqueeze(1))[:, 0])
            ids = torch.cat([ids, steps[-1].argmax(-1, keepdim=True)], dim=1)
        return ids[:, len(prompt) :], torch.stack(steps, dim=1)


def named_lanes(model: CausalModel, prompt: Sequence[int]) -> list[Lane]:
    """The base and each adapter by itself, reading one prompt."""
    count = len(model.adapters)
    points = [(0.0,) * count, *(tuple(float(i == own) for i in range(count)) for own in range(count))]
    return [Lane(point, tuple(prompt)) for point in points]


def index_of(model: CausalModel, lanes: Sequence[Lane]) -> LaneIndex:
    points = [model.acting(lane) for lane in lanes]
    return LaneIndex.of(points, len(model.adapters), model.facts.device)


@torch.inference_mode()
def opened(model: CausalModel, lanes: Sequence[Lane]) -> tuple[KVCache, list[int]]:
    """A cache of these rows, all of their prompts read but the last token, which is returned."""
    cache, last = model.new_cache(), []
    for place, lane in enumerate(lanes):
        passage = model.passage(lane, ())
        memory = model.prefill([Piece.whole(passage)])[0] if passage.labels else None
        assert cache.insert(memory) == place
        last += model.unread(lane, ())
    return cache, last


@torch.inference_mode()
def lockstep(model: CausalModel, prompts: Sequence[Sequence[int]], mixes: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Every prompt under every mix [B, N], all in one ragged batch -> tokens [P, B, T] and logits [P, B, T, V]."""
    each, count = mixes.shape[1], len(mixes)
    lanes = [lane for prompt in prompts for _ in range(count) for lane in named_lanes(model, prompt)]
    cache, last = opened(model, lanes)
    index = index_of(model, lanes)
    weights = mixes.repeat(len(prompts), 1).to(model.facts.device)
    fed = torch.tensor(last, device=model.facts.device).unsqueeze(1)
    chosen, steps = [], []
    for _ in range(tokens):
        hidden = model.step(fed, index, cache)[:, 0].view(len(weights), each, -1)
        logits = model.head(torch.einsum("bn,bnd->bd", weights, hidden))
        steps.append(logits)
        chosen.append(logits.argmax(-1))
        fed = chosen[-1].repeat_interleave(each).unsqueeze(1)
    shape = (len(prompts), count, tokens)
    return torch.stack(chosen, dim=1).view(shape), torch.stack(steps, dim=1).view(*shape, -1)
