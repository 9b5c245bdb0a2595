"""The interface of scorers: TRL's reward functions, `(prompts, completions, **kwargs) -> list of floats in [0, 1]`.

A scorer is deterministic: a pair gets the same score in any batch (up to float rounding), and building or calling a
scorer leaves torch's random state unchanged, so a resumed run sees the same random numbers.
"""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from emorl_core.errors import EmorlError
from emorl_core.kinds import Spec

if TYPE_CHECKING:
    import torch


class ScorerError(EmorlError):
    """A scorer that cannot be built, or that returned an invalid result. `scorer` and `index` say which and where."""

    code = "invalid_scorer"

    def __init__(
        self, message: str, *, param: str | None = None, scorer: str | None = None, index: int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.scorer = scorer
        self.index = index


@runtime_checkable
class Scorer(Protocol):
    """One float in [0, 1] per (prompt, completion), higher is better. Extra keyword arguments are data columns, as in
    TRL; a scorer uses those it knows. `__name__` is its name in TRL and in metrics."""

    __name__: str

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]: ...


class Pair(Protocol):
    """A prompt with a reply, if it has one."""

    @property
    def prompt(self) -> str: ...
    @property
    def response(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a scorer may need in addition to its configuration."""

    device: str = "auto"  # auto (CUDA if available), cpu, cuda, cuda:N
    base: Path | None = None  # base of relative paths
    corpus: Sequence[Pair] = ()  # of the training part, for scorers that learn from text
    # Builds a scorer within another, from its specification and the field's name; set by the registry.
    part: Callable[[object, str], Checked] | None = None


class ScorerConfig(Spec):
    """Base of every scorer's configuration."""

    runs_code: ClassVar[bool] = False  # whether it runs any Python code that the configuration names

    @property
    def reads_corpus(self) -> bool:
        """Whether it uses `Context.corpus`."""
        return False

    @property
    def parts(self) -> tuple[object, ...]:
        """Specifications of the scorers within it."""
        return ()

    @abstractmethod
    def build(self, context: Context) -> Scorer:
        """Load everything that the scorer needs. Raises `ScorerError`."""


class Checked:
    """A scorer whose results are verified. The error for an invalid one names the scorer and the index."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.__name__ = name_of(scorer)

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        """Raises `ScorerError` unless there is one prompt per completion, all of them strings, and the result is one
        finite number in [0, 1] for each."""
        check_texts(self.__name__, prompts, completions)
        scores = self.scorer(prompts=prompts, completions=completions, **kwargs)
        if not isinstance(scores, (list, tuple)):
            raise self._fault(f"returned a {type(scores).__name__}; allowed: a list of floats")
        if len(scores) != len(completions):
            raise self._fault(f"returned {len(scores)} scores for {len(completions)} completions")
        return [self._number(score, index) for index, score in enumerate(scores)]

    def _number(self, score: object, index: int) -> float:
        # numpy's scalars are Real, tensors are not. A bool is probably a comparison returned by mistake.
        if isinstance(score, bool) or not isinstance(score, numbers.Real):
            raise self._fault(f"returned a {type(score).__name__} at index {index}; allowed: a float", index)
        value = float(score)
        if not 0.0 <= value <= 1.0:  # NaN is refused too
            shown = "NaN" if math.isnan(value) else f"{value:g}"
            raise self._fault(f"returned {shown} at index {index}; allowed: 0 to 1", index)
        return value

    def _fault(self, what: str, index: int | None = None) -> ScorerError:
        return ScorerError(f"scorer {self.__name__!r} {what}", scorer=self.__name__, index=index)


def checked(scorer: Scorer) -> Checked:
    """`scorer`, verified at every call; one that is already checked is returned unchanged."""
    return scorer if isinstance(scorer, Checked) else Checked(scorer)


def name_of(scorer: object) -> str:
    """A scorer's name in messages and metrics."""
    return str(getattr(scorer, "__name__", type(scorer).__name__))


def check_texts(name: str, prompts: Sequence[object], completions: Sequence[object]) -> None:
    """Raises `ScorerError` unless there is one prompt per completion and all are strings."""
    if len(prompts) != len(completions):
        raise ScorerError(f"scorer {name!r} got {len(prompts)} prompts and {len(completions)} completions", scorer=name)
    for what, texts in (("prompt", prompts), ("completion", completions)):
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ScorerError(
                    f"scorer {name!r}: {what} {index} is a {type(text).__name__}; allowed: a string",
                    scorer=name,
                    index=index,
                )


def clip(value: float) -> float:
    """Clip to [0, 1]; NaN stays NaN, so that the check finds it."""
    return value if math.isnan(value) else min(1.0, max(0.0, value))


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA if available. Raises `ScorerError` for a device that does not exist here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ScorerError(
            f"device {name!r} is not here; allowed: auto, cpu, or a CUDA device that exists", param="device"
        ) from None
    return device


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first: little padding, and a batch that does not fit in memory
    fails at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block, transformers prints no progress bars or warnings on the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Load a model without changing torch's random state and without a loading report on the terminal."""
    import torch

    with quiet_transformers(), torch.random.fork_rng():
        yield
