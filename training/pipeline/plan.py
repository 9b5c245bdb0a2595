"""What a recipe would do, without doing it: sizes of data and model, memory, steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.recipe.recipe import BaseSettings, Recipe, WarmStart
from training.rl.settings import LoraSettings
from training.warm_start.scratch_t5 import ScratchSettings

_FLOAT = 4  # bytes of a float32
_LOGITS = 64 * 2**20  # see training/rl/logprobs.py


@dataclass(frozen=True, slots=True)
class Shape:
    """What sizes are computed from; read from a T5 config.json."""

    d_model: int
    inner: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int
    gated: bool
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        from emorl_core.models.t5.blocks import T5Config

        t5 = T5Config.from_hf(config)
        tied = bool(config.get("tie_word_embeddings", True))
        return cls(t5.d_model, t5.inner, t5.d_ff, t5.num_layers, t5.num_decoder_layers, t5.vocab_size, t5.gated, tied)

    @classmethod
    def new(cls, scratch: ScratchSettings) -> Shape:
        """Of a model from scratch; its vocabulary may turn out smaller."""
        gated = scratch.feed_forward != "relu"
        width = scratch.d_model
        return cls(
            width, width, scratch.d_ff, scratch.layers, scratch.decoder_layers, scratch.vocab_size, gated, tied=True
        )

    def linears(self) -> list[tuple[str, int, int, int]]:
        """(last part of the name, in, out, how many)."""
        d, inner, ff = self.d_model, self.inner, self.d_ff
        attentions = self.encoder_layers + 2 * self.decoder_layers
        layers = self.encoder_layers + self.decoder_layers
        up = ["wi_0", "wi_1"] if self.gated else ["wi"]
        return [
            *[(name, d, inner, attentions) for name in "qkv"],
            ("o", inner, d, attentions),
            *[(name, d, ff, layers) for name in up],
            ("wo", ff, d, layers),
        ]

    def base_parameters(self) -> int:
        embeddings = self.vocabulary * self.d_model * (1 if self.tied else 2)
        return embeddings + sum(count * i * o for _, i, o, count in self.linears())

    def adapter_parameters(self, lora: LoraSettings) -> int:
        chosen = [x for x in self.linears() if lora.targets == "all-linear" or x[0] in lora.targets]
        return sum(count * lora.rank * (i + o) for _, i, o, count in chosen)


def make_plan(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Read the data and the base's config and tokenizer; train and write nothing.

    A base that is not here (a hub id without a network) is a line in the plan, not an error. Raises `DataError`,
    `RecipeError`.
    """
    from emorl_core.errors import BundleError
    from emorl_core.models.checkpoint import read_config
    from emorl_core.tokenizer import HuggingFaceTokenizer
    from training.pipeline.base import base_folder, warm_start_records
    from training.pipeline.prepare import encode, load_data

    data = load_data(recipe, folder)
    rl, names = recipe.rl, list(recipe.objectives)
    plan: dict[str, Any] = {
        "name": recipe.name,
        "preset": recipe.preset,
        "data": {**data.summary(), "notes": [source.summary() for source in data.sources]},
        "objectives": {name: {"scorer": recipe.objectives[name].scorer} for name in names},
        "steps": {
            "most": rl.stop.max_steps,
            "rule": rl.stop.rule,
            "validate_every": rl.validate_every,
            "prompts_per_step": rl.prompts_per_step,
            "samples_per_step": rl.prompts_per_step * rl.samples_per_prompt * len(names),
            "most_prompts": rl.stop.max_steps * rl.prompts_per_step,
        },
    }
    plan["steps"]["steps_per_pass"] = round(plan["data"]["parts"]["train"]["prompts"] / rl.prompts_per_step, 2)
    start = recipe.base.warm_start
    if start is not None:
        records = warm_start_records(start, folder, data, recipe.data.split_by)
        plan["warm_start"] = {"records": len(records), "steps": start.fit.steps, "batch_size": start.fit.batch_size}
    longest = recipe.max_source_tokens
    try:
        if start is not None and start.scratch is not None:
            shape = Shape.new(start.scratch)
        else:
            where = recipe if start is None else _without_warm_start(recipe, start)
            base = base_folder(where, folder)
            shape = Shape.of(read_config(base))
            encoded = encode(recipe, data, HuggingFaceTokenizer(base))
            plan["data"]["cut_prompts"] = encoded.cut
            longest = max(len(prompt.gradient_source) for prompt in encoded.train)
    except BundleError as error:
        return {**plan, "base": {"missing": error.message}}
    adapters = {name: shape.adapter_parameters(recipe.lora_of(name)) for name in names}
    plan["parameters"] = {"base": shape.base_parameters(), "adapters": adapters}
    plan["memory_bytes"] = memory(recipe, shape, sum(adapters.values()), longest)
    return plan


def _without_warm_start(recipe: Recipe, start: WarmStart) -> Recipe:
    """With the model that the warm start begins with as the base: it has the same shape."""
    return recipe.model_copy(update={"base": BaseSettings(hub=start.hub, revision=start.revision, path=start.path)})


def memory(recipe: Recipe, shape: Shape, adapter_parameters: int, source_tokens: int) -> dict[str, int]:
    """Estimated bytes at the fullest moment, every reply at its limit. Scorers' own models are not in it."""
    rl, count = recipe.rl, len(recipe.objectives)
    prompts = min(recipe.compute.prompts_per_forward or rl.prompts_per_step, rl.prompts_per_step)
    encoder_rows = prompts * count
    decoder_rows = encoder_rows * rl.samples_per_prompt
    ranks = sum(recipe.lora_of(name).rank for name in recipe.objectives)
    # Kept for the backward pass, per token and layer: inputs of the norms and products, q, k, v, the hidden layer
    # twice (before and after its function), and the adapters' low-rank columns.
    attention = 3 * shape.d_model + 4 * shape.inner + 5 * ranks
    feed_forward = 3 * shape.d_model + (4 if shape.gated else 2) * shape.d_ff + 2 * ranks
    encoder = encoder_rows * source_tokens * shape.encoder_layers * (attention + feed_forward)
    decoder = decoder_rows * rl.max_new_tokens * shape.decoder_layers * (2 * attention + feed_forward)
    cross = 2 * decoder_rows * source_tokens * shape.decoder_layers * 2 * shape.inner
    replies = min(recipe.compute.rollout_slots, rl.prompts_per_step * rl.samples_per_prompt * count)
    cache = replies * (rl.max_new_tokens + source_tokens) * shape.decoder_layers * 2 * shape.inner * 2  # it doubles
    estimate = {
        "base": shape.base_parameters() * _FLOAT * 2,  # a second copy in the layout that is fast for few rows
        "adapters": adapter_parameters * _FLOAT * 5,  # values, gradients, two moments, the best ones
        "gradient_pass": (encoder + decoder + cross) * _FLOAT + _LOGITS,
        "rollout": cache * _FLOAT,
    }
    total = estimate["base"] + estimate["adapters"] + max(estimate["gradient_pass"], estimate["rollout"])
    return {**estimate, "total": total}
