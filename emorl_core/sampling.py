"""logits [B, V] + per-row parameters -> token ids [B].

The noise of a row is a function of (seed, position, token id) only, so a row's tokens never depend on its neighbours,
on the batch, or on how many draws came before. Sampling is the Gumbel-max trick: argmax(logit / temperature + gumbel).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emorl_core.types import Sampling

_MASK64 = 2**64 - 1
_MASK32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class RowParameters:
    """One row's parameters besides its logits. `position`: index of the token to choose; `seen`: the tokens so far,
    including those before the reply that count (as in Hugging Face's processors); the last `position` of them are the
    reply's.
    """

    sampling: Sampling
    seed: int
    position: int
    seen: Sequence[int]

    @property
    def reply(self) -> Sequence[int]:
        return self.seen[len(self.seen) - self.position :]


def constrain(logits: Tensor, rows: Sequence[RowParameters], eos_token_ids: Sequence[int]) -> Tensor:
    """Apply penalties and constraints, before the temperature. Returns `logits` itself if no row has any, else a copy.

    In the order of vLLM and transformers: bias, repetition penalty, frequency and presence penalty, no-repeat n-grams,
    min_new_tokens.

    Args:
        logits: [B, V] float32.
    """
    changed = [i for i, row in enumerate(rows) if row.sampling.looks_back or row.sampling.logit_bias]
    held = [i for i, row in enumerate(rows) if row.position < row.sampling.min_new_tokens]
    if not changed and not held:
        return logits
    logits = logits.clone()
    for i in changed:
        _constrain(logits[i], rows[i])
    if held:
        logits[torch.tensor(held, device=logits.device).unsqueeze(1), list(eos_token_ids)] = float("-inf")
    return logits


def _constrain(scores: Tensor, row: RowParameters) -> None:
    """One row's logits [V], in place."""
    settings, device = row.sampling, scores.device
    if settings.logit_bias:
        tokens, bias = zip(*settings.logit_bias, strict=True)
        scores[torch.tensor(tokens, device=device)] += torch.tensor(bias, device=device)
    if settings.repetition_penalty != 1.0 and row.seen:
        seen = torch.tensor(sorted(set(row.seen)), device=device)
        own, penalty = scores[seen], settings.repetition_penalty
        scores[seen] = torch.where(own < 0, own * penalty, own / penalty)
    if (settings.presence_penalty or settings.frequency_penalty) and row.reply:
        counts = Counter(row.reply)
        taken = [settings.presence_penalty + settings.frequency_penalty * count for count in counts.values()]
        scores[torch.tensor(list(counts), device=device)] -= torch.tensor(taken, device=device)
    banned = _ends_of_known_runs(row.seen, settings.no_repeat_ngram_size)
    if banned:
        scores[torch.tensor(sorted(banned), device=device)] = float("-inf")


def _ends_of_known_runs(seen: Sequence[int], size: int) -> set[int]:
    """The tokens that would complete an n-gram of `size` tokens that already occurred; empty for size 0."""
    if not 0 < size <= len(seen):
        return set()
    beginning = tuple(seen[len(seen) - size + 1 :])
    return {seen[end] for end in range(size - 1, len(seen)) if tuple(seen[end - size + 1 : end]) == beginning}


def choose(logits: Tensor, rows: Sequence[RowParameters]) -> Tensor:
    """One token id per row: argmax for greedy rows, a seeded draw for the others.

    Args:
        logits: [B, V] float32, after `constrain`.

    Returns:
        [B] int64.
    """
    ids = logits.argmax(dim=-1)
    drawn = [i for i, row in enumerate(rows) if not row.sampling.greedy]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        ids[index] = _draw(logits[index], [rows[i] for i in drawn])
    return ids


def _draw(logits: Tensor, rows: Sequence[RowParameters]) -> Tensor:
    device = logits.device
    temperature = torch.tensor([row.sampling.temperature for row in rows], device=device)
    scaled = logits / temperature.unsqueeze(1)
    filtered = [i for i, row in enumerate(rows) if row.sampling.top_k or row.sampling.top_p < 1.0]
    if filtered:
        index = torch.tensor(filtered, device=device)
        scaled[index] = _filter(scaled[index], [rows[i].sampling for i in filtered])
    floors = [math.log(row.sampling.min_p) if row.sampling.min_p else -math.inf for row in rows]
    if any(row.sampling.min_p for row in rows):
        floor = scaled.amax(dim=-1, keepdim=True) + torch.tensor(floors, device=device).unsqueeze(1)
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    # A sweep's members sample with the same seed and position, so they share their noise.
    keys = [noise_key(row.seed, row.position) for row in rows]
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    everything = torch.arange(logits.shape[1], device=device).unsqueeze(0)
    noise = gumbel(torch.tensor(list(distinct), device=device), everything)
    if len(distinct) < len(keys):
        noise = noise[torch.tensor([distinct[key] for key in keys], device=device)]
    return scaled.add_(noise).argmax(dim=-1)


def _filter(scaled: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """-inf for tokens outside a row's top-k and, within that, its nucleus (top-p). [F, V] -> [F, V].

    A token that ties with the last one kept is kept too: the order of equal values in a sort depends on how many values
    other rows' filters need, and bfloat16 logits are often equal.
    """
    device, vocabulary = scaled.device, scaled.shape[1]
    limits = [min(each.top_k or vocabulary, vocabulary) for each in settings]
    values = torch.topk(scaled, max(limits), dim=-1).values  # falling
    within = torch.arange(values.shape[1], device=device) < torch.tensor(limits, device=device).unsqueeze(1)
    # float64, so that rounding does not depend on the number of values summed for other rows.
    probabilities = torch.softmax(values.double().masked_fill(~within, float("-inf")), dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    nucleus = torch.tensor([each.top_p if each.top_p < 1.0 else float("inf") for each in settings], device=device)
    kept = (within & (before < nucleus.unsqueeze(1))).sum(dim=-1, keepdim=True).clamp(min=1)
    return scaled.masked_fill(scaled < values.gather(1, kept - 1), float("-inf"))


def noise_key(seed: int, position: int) -> int:
    """63-bit key of one draw: splitmix64 (Steele et al. 2014) over seed and position."""
    return _splitmix64(_splitmix64(seed) ^ (position * 0x9E3779B97F4A7C15 & _MASK64)) >> 1


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise as a pure function of (key, token id), the same bits on every device.

    Args:
        keys: [B] int64 from `noise_key`.
        token_ids: [B, K] or [1, K] int64.

    Returns:
        [B, K] float32.
    """
    bits = token_ids.to(torch.int32) ^ keys.to(torch.int32).unsqueeze(1)
    bits = _lowbias32_(bits).bitwise_xor_((keys >> 32).to(torch.int32).unsqueeze(1))
    # log1p(-u) keeps full precision where it matters: a small u gives the large noise that wins.
    uniform = _lowbias32_(bits).view(torch.uint32).to(torch.float32).add_(0.5).mul_(2.0**-32)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def hash32(x: Tensor) -> Tensor:
    """lowbias32 (Wellons 2018), a bijection of 32 bits with little bias, of the low 32 bits of int64 values."""
    return _lowbias32_(x.to(torch.int32)).to(torch.int64) & _MASK32


def _lowbias32_(x: Tensor) -> Tensor:
    """In place, in int32: a whole vocabulary is hashed for every sampled row, and half the width is twice as fast."""
    x ^= (x >> 16).bitwise_and_(0xFFFF)  # the shift of a signed number copies its sign
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= 0x846CA68B - 2**32
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
