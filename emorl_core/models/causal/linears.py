"""Lane-aware linear layers in a Hugging Face decoder, called by the library's code like the layers they replace."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear


class Rows:
    """The lanes of the tokens in the current pass. One object for all layers of a model, set before every pass."""

    def __init__(self) -> None:
        self.tokens = 0  # M lane rows times q tokens
        self.index: LaneIndex | None = None  # of these tokens, possibly followed by spare rows; None: the base only
        self.routed: set[str] = set()  # layers that were called with another number of tokens

    def set(self, index: LaneIndex | None, tokens: int) -> None:
        """Call before a pass over `tokens` tokens in total."""
        self.index, self.tokens = index, tokens


class LaneLayer(nn.Module):
    """One linear layer of a decoder with its bias: [..., in] -> [..., out]."""

    def __init__(self, name: str, weight: Tensor, bias: Tensor | None, rows: Rows) -> None:
        super().__init__()
        self.name = name
        self.linear = LaneLinear(weight)
        self.register_buffer("bias", bias, persistent=False)
        self.bias: Tensor | None
        self._rows = rows

    @property
    def weight(self) -> Tensor | None:
        """The base's matrix [out, in]; None once it is packed. Some modelling code reads its number format."""
        return self.linear.base.weight

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        index = self._rows.index
        if flat.shape[0] != self._rows.tokens:
            # For example a routed expert: the lane of each row is unknown, so this layer takes no adapter.
            if self.linear.lora_b is not None:
                raise RuntimeError(f"{self.name} has adapters and was given a part of the tokens only")
            self._rows.routed.add(self.name)
            index = None
        y = self.linear.base.both(flat)[0] if index is None else self.linear(flat, index)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)


def replace_linears(model: nn.Module, decoder: nn.Module, rows: Rows) -> list[LaneLayer]:
    """Replace every `nn.Linear` and GPT-2 `Conv1D` within `decoder`, a part of `model`, by a `LaneLayer`.

    Each keeps its name in `model`, which is PEFT's name for it. Shared layers stay shared. Subclasses of `nn.Linear`
    compute something else and are not replaced.
    """
    made: dict[int, LaneLayer] = {}
    inside = {id(module) for module in decoder.modules()}
    for parent_name, parent in list(model.named_modules()):
        if id(parent) not in inside:
            continue
        for child_name, child in list(parent.named_children()):
            if type(child) not in (nn.Linear, Conv1D):
                continue
            if id(child) not in made:
                made[id(child)] = _lane_layer(f"{parent_name}.{child_name}".lstrip("."), child, rows)
            setattr(parent, child_name, made[id(child)])
    return list(made.values())


def _lane_layer(name: str, module: nn.Module, rows: Rows) -> LaneLayer:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    matrix = weight.detach()
    if isinstance(module, Conv1D):
        matrix = matrix.t().contiguous()  # stored [in, out]
    return LaneLayer(name, matrix, bias.detach() if isinstance(bias, Tensor) else None, rows)
