"""The decoding step on a CPU through `torch.compile`, which fuses its small operations (figures in docs/log.md)."""

from __future__ import annotations

import re
import sysconfig
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.cache.kv import SIZE_STEP, KVCache, Memory, round_size
from emorl_core.errors import UnsupportedModel
from emorl_core.models.t5.step import StepFunction, StepRows

if TYPE_CHECKING:
    from emorl_core.models.t5.model import T5


# Numbers that are no sizes never change.
_SETTINGS = {"specialize_int": True, "specialize_float": True}
_CONSTANT = "parameters"  # the argument that is the same in every call


class CompiledStep:
    """`T5.step` for one new token a lane row, compiled once for all sizes. Not for training."""

    def __init__(self, model: T5) -> None:
        """Compiles, which takes the better part of a minute the first time and seconds when the compiler's cache on
        disk knows the model.

        Raises:
            UnsupportedModel: torch cannot compile here (most often: no C++ compiler).
        """
        check_compiler()
        self._model = model
        step = StepFunction(model)
        self._parameters = step.parameters
        for parameter in self._parameters:
            torch._dynamo.mark_static(parameter)
        self._step = _compiled(step.function, dynamic=True)
        self._head = _compiled(_head_row, dynamic=False)
        self._lanes: Tensor | None = None
        self._compiled = False
        self._warm_up()
        self._compiled = True

    def __call__(self, tokens: Tensor, lanes: Tensor, cache: KVCache) -> Tensor:
        """tokens [M, 1], lanes [M] -> last hidden states [M, D]; writes the new token's keys and values."""
        model, count = self._model, cache.count
        cache.reserve(1)
        if self._lanes is not lanes:
            # A size of 1 is a case of its own to the compiler, so a single row gets company.
            self._lanes, self._rows = lanes, StepRows(lanes, cache, max(2, count))
        x = F.embedding(tokens[:, 0], model.embedding.weight)  # type: ignore[arg-type]
        lengths = torch.tensor(cache.lengths)
        if count == 1:
            x, lengths = x.repeat(2, 1), lengths.repeat(2)
        bias = model.causal_bias(lengths.unsqueeze(1), round_size(max(cache.lengths) + 1))[:, :, 0].float()  # [M, H, T]
        own, cross = cache.tensors()
        if not self._compiled:  # what never changes is said once, to the compiler
            for tensor in (x, bias):
                torch._dynamo.mark_static(tensor, 1)
            for layer in (*own, *cross):
                torch._dynamo.mark_static(layer, [0, 2, 4])
        rows = self._rows
        hidden = self._step(x, rows.lanes, rows.places, lengths, bias, rows.source_mask, own, cross, self._parameters)
        cache.advance(1)
        return hidden[:count]

    def head_row(self, weight: Tensor, hidden: Tensor) -> Tensor:
        """The head's product for one row: weight [V, D], hidden [1, D] -> [1, V] float32."""
        return self._head(weight, hidden)

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile, in sizes that say which of them are one and the same.

        The compiler gives equal sizes one symbol. The layers' caches should share theirs (or it takes minutes); rows,
        tokens, source tokens and the capacities must not: so here they are 3, 16, 48 and 4, 33, 65.
        """
        model = self._model
        cache, config = model.new_cache(), model.config
        for length in (3, 5, 2 * SIZE_STEP + 1):
            cache.insert(Memory(torch.zeros(2, config.num_decoder_layers, config.num_heads, length, config.d_kv)))
        lanes = torch.zeros(cache.count, dtype=torch.int64)
        try:
            with torch._dynamo.config.patch(_SETTINGS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's are about its own insides
                self(torch.zeros(cache.count, 1, dtype=torch.int64), lanes, cache)
                if model.dtype == torch.bfloat16:
                    weight = model.lm_head.weight
                    assert weight is not None
                    self.head_row(weight, torch.zeros(1, config.d_model, dtype=model.dtype))
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
            reason = " ".join(str(error).partition("\n\n")[0].split()) or type(error).__name__
            raise UnsupportedModel(
                f"compile is on, but torch cannot compile here: {reason}", param="compile"
            ) from error


def check_compiler() -> None:
    """Raises UnsupportedModel when torch finds no C++ compiler, or the compiler would find no Python."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # the compiler's modules take a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        reason = str(error).partition(":")[2].strip()
        raise UnsupportedModel(
            f"compile is on and torch finds no C++ compiler {reason}; install g++ or name one in CXX", param="compile"
        ) from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UnsupportedModel(
            "compile is on and this Python has no headers (Python.h); on Debian python3-dev has them", param="compile"
        )


def _compiled(function: Callable[..., Tensor], *, dynamic: bool) -> Callable[..., Tensor]:
    """`torch.compile` for one model, which asks before a call only what can differ from call to call: the sizes.

    By default it also makes sure of every number, function and parameter that the code names, 1,200 of them for
    T5-base, which took 3 % of a step. They are one model's and never change; so that no two models share what is
    compiled, each gets code of its own. That also lets a process load any number of models.
    """
    code = function.__code__.replace()
    own = FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
    constant = {_CONSTANT, *code.co_freevars}

    def root(name: str) -> str:
        return re.split(r"\W", name, maxsplit=1)[0]  # of `parameters[3]`, `norm.__closure__[1]`

    def ask(guards: Sequence[Any]) -> list[bool]:
        return [not guard.is_global and root(guard.name) not in constant for guard in guards]

    made: Callable[..., Tensor] = torch.compile(own, dynamic=dynamic, fullgraph=True, options={"guard_filter_fn": ask})
    # What was compiled lies with the code and refers to it, in a circle that Python cannot see.
    weakref.finalize(made, torch._dynamo.eval_frame.remove_from_cache, code)
    return made


def _head_row(weight: Tensor, hidden: Tensor) -> Tensor:
    return (weight.float() * hidden.float()).sum(dim=-1).unsqueeze(0)
