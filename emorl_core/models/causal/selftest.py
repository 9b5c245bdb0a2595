"""The self-test of every base at load: ragged rows through lanes, compared with the library's own eager code.

It catches what the config does not show: a layer that keeps state, another kind of mask, an unknown constant in the
head.
Sliding windows are shortened for the test, so that short rows exceed them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emorl_core.errors import EmorlError, UnsupportedModel, one_line

_LENGTHS = (13, 8)  # tokens of the two rows
STEPS = 3  # the last tokens of each, fed one by one
_WINDOW = 4
# Allowed error of logits, relative to their spread. float32 sums in another order (measured up to 1e-5); bfloat16
# rounds to 8 bits in every layer (up to 0.1 in a real model of 30 layers). A wrong mask or lost state gives about 1.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}


def rows(vocab_size: int, special: Sequence[int]) -> list[list[int]]:
    """Two rows of tokens spread over the vocabulary, without special tokens."""
    allowed = [i for i in range(vocab_size) if i not in set(special)] if vocab_size < 1000 else range(100, vocab_size)
    stride = max(1, len(allowed) // 29)
    return [
        [allowed[(5 + 7 * row + stride * i * (i + 1)) % len(allowed)] for i in range(n)]
        for row, n in enumerate(_LENGTHS)
    ]


@torch.no_grad()
def expected(model: nn.Module, prompts: list[list[int]], device: torch.device) -> Tensor:
    """The library's own logits [2, STEPS, V] float32, each row alone, without a cache."""
    logits = []
    for prompt in prompts:
        out = model(input_ids=torch.tensor([prompt], device=device), use_cache=False)
        logits.append(out.logits[0, -STEPS:].float())
    return torch.stack(logits)


def compare(kind: str, wanted: Tensor, found: Tensor, dtype: torch.dtype) -> None:
    """Refuse a base whose lanes disagree with the library.

    Raises:
        UnsupportedModel
    """
    # A constant added to all logits of a token does not change the softmax, and in real models it dominates their
    # magnitude.
    wanted, found = (logits - logits.mean(dim=-1, keepdim=True) for logits in (wanted, found))
    error = float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))
    if not error <= _TOLERANCE[dtype]:  # NaN is refused too
        raise _failed(kind, f"logits are off by {error:.2g} of their spread, allowed: {_TOLERANCE[dtype]:g}")


@contextmanager
def faults_refused(kind: str) -> Iterator[None]:
    """Turn any error that the model's code raises during the test into a refusal of the base.

    Raises:
        UnsupportedModel
    """
    try:
        yield
    except UnsupportedModel:
        raise
    except EmorlError as error:
        raise _failed(kind, error.message) from None
    except torch.OutOfMemoryError:
        raise
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        LookupError,
        NotImplementedError,
    ) as error:
        raise _failed(kind, f"{type(error).__name__}: {one_line(error)}") from error


def _failed(kind: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"base model_type {kind!r}: run in lanes, it does not do what it does in transformers ({what}), so it would "
        "write wrong text"
    )


@contextmanager
def short_windows(model: nn.Module, config: Any) -> Iterator[None]:
    """Within the block, sliding windows have a few tokens: in the config, which the library's masks follow, and in
    layers that stored theirs at construction."""
    changed: list[tuple[Any, int]] = []
    owners = [config, *model.modules()]
    try:
        for owner in owners:
            window = getattr(owner, "sliding_window", None)
            if isinstance(window, int) and window > _WINDOW:
                changed.append((owner, window))
                owner.sliding_window = _WINDOW
        yield
    finally:
        for owner, window in changed:
            owner.sliding_window = window
