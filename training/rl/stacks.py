"""Adapters during training: initialisation, each objective's view of the shared stacks and its AdamW, and conversion
back to an `Adapter`.

Letters: P fused projections, N adapters, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from emorl_core.adapters.adapter import Adapter, LoraPair
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.family import TrainableModel
from training.config import RecipeError
from training.rl.settings import LoraSettings
from training.seeds import derive


def fresh_adapter(
    model: TrainableModel, name: str, settings: LoraSettings, seed: int, invocation: tuple[int, ...] | None = None
) -> Adapter:
    """An adapter that changes nothing yet: A as PEFT draws it (Kaiming uniform with a = sqrt 5, so uniform within
    1 / sqrt(in)), B zero. invocation: the tokens from which it acts; None: it acts everywhere.

    Raises `RecipeError` for a target that no layer of the base has.
    """
    generator = torch.Generator().manual_seed(derive(seed, "adapter", name))
    layers = [(module, layer) for names, layer in model.linears() for module in names]
    targets = settings.targets
    if targets != "all-linear":
        known = sorted({module.split(".")[-1] for module, _ in layers})
        for target in targets:
            if target not in known:
                raise RecipeError(
                    f"lora.targets: the base has no layer {target!r}; it has {', '.join(known)}", param="lora.targets"
                )
    modules = {}
    for module, layer in layers:
        if targets == "all-linear" or module.split(".")[-1] in targets:
            a = torch.empty(settings.rank, layer.in_features)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            modules[module] = LoraPair(
                a, torch.zeros(layer.out_features, settings.rank), settings.alpha / settings.rank
            )
    return Adapter(name, modules, invocation_tokens=invocation)


class Stacks:
    """The trained parameters of a model with attached adapters: one stack per layer and factor, with all objectives."""

    def __init__(self, model: TrainableModel) -> None:
        self.layers: list[tuple[list[str], LaneLinear]] = [
            (list(names), layer) for names, layer in model.linears() if layer.lora_a is not None
        ]
        self.device = model.facts.device
        for tensor in self.parameters():
            # referenced here, since objectives hold views of it and autograd accumulates in place
            tensor.grad = torch.zeros_like(tensor)

    def parameters(self) -> Iterator[nn.Parameter]:
        for _, layer in self.layers:
            assert layer.lora_a is not None  # see above
            assert layer.lora_b is not None
            yield layer.lora_a
            yield layer.lora_b

    def gradients(self) -> list[Tensor]:
        """One [P, N, R, in or out] tensor per stack."""
        return [tensor.grad for tensor in self.parameters() if tensor.grad is not None]

    def zero_gradients(self, lanes: Sequence[int] | None = None) -> None:
        """Zero the gradients of these lanes' adapters, or of all."""
        for gradient in self.gradients():
            if lanes is None:
                gradient.zero_()
            else:
                for lane in lanes:
                    gradient[:, lane - 1].zero_()

    def gradient_norm(self, lane: int) -> float:
        """L2 norm of one objective's gradient over its whole adapter."""
        norms = torch._foreach_norm([gradient[:, lane - 1] for gradient in self.gradients()])
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def views(self, lane: int) -> list[nn.Parameter]:
        """One objective's part of every stack [P, R, in or out], with its gradient: they share memory, so an
        optimiser's changes apply to the model."""
        views = []
        for tensor in self.parameters():
            view = nn.Parameter(tensor.data[:, lane - 1])
            assert tensor.grad is not None  # set when the stacks were made
            view.grad = tensor.grad[:, lane - 1]
            views.append(view)
        return views

    def values(self, lane: int) -> list[Tensor]:
        """A copy of one objective's part of every stack."""
        return [tensor.data[:, lane - 1].clone() for tensor in self.parameters()]

    @torch.no_grad()
    def set_values(self, lane: int, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self.parameters(), values, strict=True):
            tensor.data[:, lane - 1] = value

    def adapter(self, lane: int, name: str, like: Adapter, values: Sequence[Tensor] | None = None) -> Adapter:
        """The objective's weights (or these `values`) as an `Adapter` with the modules, ranks and scales of `like`."""
        flat = iter(self.values(lane) if values is None else values)
        modules = {}
        for names, _ in self.layers:
            a, b = next(flat), next(flat)
            for p, module in enumerate(names):
                pair = like.modules.get(module)
                if pair is not None:
                    trained_a, trained_b = a[p, : pair.rank], b[p, : pair.rank].t()
                    modules[module] = LoraPair(
                        trained_a.float().cpu().contiguous(), trained_b.float().cpu().contiguous(), pair.scale
                    )
        return Adapter(name, modules, like.base_name, invocation_tokens=like.invocation_tokens)


Rate = Callable[[int], float]  # step number, from 1 -> learning rate


def warmed_up(learning_rate: float, warmup_steps: int) -> Rate:
    """Linear warmup, then constant."""
    return lambda step: learning_rate * min(1.0, step / max(1, warmup_steps))


def falling(learning_rate: float, warmup_steps: int, steps: int) -> Rate:
    """Linear warmup, then cosine decay to zero after the last step."""

    def rate(step: int) -> float:
        if step <= warmup_steps:
            return learning_rate * step / warmup_steps
        done = (step - warmup_steps - 1) / max(1, steps - warmup_steps)
        return learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    return rate


class ObjectiveOptimizer:
    """AdamW on one objective's views of the stacks, with its own gradient norm, learning rate and moments. Other
    objectives are never touched."""

    def __init__(
        self,
        stacks: Stacks,
        lane: int,
        *,
        rate: Rate,
        weight_decay: float,
        max_norm: float,
    ) -> None:
        self._views: list[nn.Parameter] = stacks.views(lane)
        self._adamw = torch.optim.AdamW(self._views, lr=rate(1), weight_decay=weight_decay, foreach=True)
        self._rate, self._max_norm = rate, max_norm
        self.steps = 0

    def step(self, norm: float) -> None:
        """Clip the gradient to `max_norm` and take a step. The norm must be finite."""
        if not math.isfinite(norm):
            raise ValueError("the gradient's norm is not finite")
        if norm > self._max_norm:
            torch._foreach_mul_(self._gradients(), self._max_norm / norm)
        self.steps += 1
        for group in self._adamw.param_groups:
            group["lr"] = self._rate(self.steps)
        self._adamw.step()

    def moments(self) -> dict[str, Tensor]:
        """AdamW's two moments of every view, for a checkpoint. Empty before the first step."""
        state = {}
        for number, view in enumerate(self._views):
            for key in ("exp_avg", "exp_avg_sq"):
                if view in self._adamw.state:
                    state[f"{number}.{key}"] = self._adamw.state[view][key]
        return state

    def restore(self, steps: int, moments: dict[str, Tensor]) -> None:
        """Continue after `steps` steps with these moments."""
        self.steps = steps
        if not moments:
            return
        for number, view in enumerate(self._views):
            self._adamw.state[view] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": moments[f"{number}.exp_avg"].to(view).clone(memory_format=torch.preserve_format),
                "exp_avg_sq": moments[f"{number}.exp_avg_sq"].to(view).clone(memory_format=torch.preserve_format),
            }

    def _gradients(self) -> list[Tensor]:
        return [view.grad for view in self._views if view.grad is not None]
