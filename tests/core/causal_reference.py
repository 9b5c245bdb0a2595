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

from emorl_core.models.causal.model import CausalModel
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


@torch.inference_mode()
def lockstep(
    model: CausalModel, prompts: Sequence[Sequence[int]], mixes: Tensor, tokens: int
) -> tuple[Tensor, Tensor]:
    """Every prompt under every mix [B, N], all in one ragged batch -> tokens [P, B, T] and logits [P, B, T, V]."""
    lanes_each, count = mixes.shape[1], len(mixes)
    asked = [(prompt, model.running_lane(prompt, lane), lane) for prompt in prompts for lane in range(lanes_each)]
    memories = model.prefill([prompt for prompt, _, _ in asked], [lane for _, _, lane in asked])
    cache = model.new_cache()
    for row in range(len(prompts) * count):
        for lane in range(lanes_each):
            cache.insert(memories[row // count * lanes_each + lane])
    lanes = torch.tensor([asked[row // count * lanes_each + lane][1] for row in range(len(prompts) * count) for lane in range(lanes_each)])
    # Rows that owe more than one token (an activated adapter's) catch up one by one, as a scheduler would have it.
    owed = [list(model.first_tokens(prompts[row // count], lane)) for row in range(len(prompts) * count) for lane in range(lanes_each)]
    weights = mixes.repeat(len(prompts), 1)
    for place, tokens_owed in enumerate(owed):
        if len(tokens_owed) > 1:
            own = CausalModel.new_cache(model)
            own.insert(memories[place // (count * lanes_each) * lanes_each + place % lanes_each])
            model.step(torch.tensor([tokens_owed[:-1]]), lanes[place : place + 1].clone(), own)
            _adopt(cache, place, own)
    fed = torch.tensor([[tokens_owed[-1]] for tokens_owed in owed])
    chosen, steps = [], []
    for _ in range(tokens):
        hidden = model.step(fed, lanes, cache)[:, 0].view(len(weights), lanes_each, -1)
        logits = model.head(torch.einsum("bn,bnd->bd", weights, hidden))
        steps.append(logits)
        chosen.append(logits.argmax(-1))
        fed = chosen[-1].repeat_interleave(lanes_each).unsqueeze(1)
    shape = (len(prompts), count, tokens)
    return torch.stack(chosen, dim=1).view(shape), torch.stack(steps, dim=1).view(*shape, -1)


def _adopt(cache: Any, place: int, own: Any) -> None:
    tokens = own.lengths[0]
    cache._grow(0, tokens)
    for mine, theirs in zip(cache._layers, own._layers, strict=True):
        mine[:, place, :, :tokens] = theirs[:, 0, :, :tokens]
    cache.lengths[place] = tokens
