"""A dry run of a recipe: sizes of data and model, memory, steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.recipe.recipe import Recipe
from training.rl.settings import SORTED_TOKENS, LoraSettings

if TYPE_CHECKING:
    from emorl_core.models.shape import Shape

_FLOAT = 4  # bytes of a float32
_LOGITS = 64 * 2**20  # see training/rl/logprobs.py


def make_plan(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Read only the data and the base's config and tokenizer; nothing is trained or written.

    A base that is not available (a hub id without a network) is a line in the plan, not an error. Raises `DataError`,
    `RecipeError`.
    """
    from emorl_core.adapters.adapter import ACTIVATED_TASK
    from emorl_core.errors import BundleError
    from emorl_core.models.config import read_config
    from emorl_core.models.registry import adapter_task
    from emorl_core.text.tokenizer import HuggingFaceTokenizer
    from training.pipeline.base import how_prompts_go, start_folder, warm_start_records, worded
    from training.pipeline.invocation import check_start
    from training.pipeline.pairs import given_records
    from training.pipeline.prepare import check_passes, encode, load_data

    data = load_data(recipe, folder)
    check_passes(recipe, data)
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
    of_a_pass = plan["data"]["parts"]["train"]["prompts"] / rl.prompts_per_step
    plan["steps"]["steps_per_pass"] = int(of_a_pass) if rl.drop_last else round(of_a_pass, 2)
    start = recipe.base.warm_start
    if start is not None:
        records = warm_start_records(start, folder, data, recipe.data.split_by)
        plan["warm_start"] = {"records": len(records), "steps": start.fit.steps, "batch_size": start.fit.batch_size}
    if recipe.adapter_start is not None:
        given = given_records(recipe, folder, data)
        plan["adapter_start"] = {
            "records": {name: len(own) for name, own in given.items()},
            "steps": recipe.adapter_start.steps,
            "batch_size": recipe.adapter_start.batch_size,
        }
    longest, task = recipe.max_source_tokens, None
    try:
        recipe = worded(recipe, folder)
        plan["prompts"] = how_prompts_go(recipe)
        base = start_folder(recipe, folder)
        if base is None:
            assert start is not None  # a base from scratch is warm-started
            assert start.scratch is not None
            check_start(recipe, None)
            shape = _shape_of({"model_type": "t5", **start.scratch.sizes()})
        else:
            shape = _shape_of(read_config(base))
            task = adapter_task(base)
            encoded = encode(recipe, data, HuggingFaceTokenizer(base), task)
            plan["data"]["cut_prompts"] = encoded.cut
            longest = max(len(prompt.gradient_source) for prompt in encoded.train)
    except BundleError as error:
        return {**plan, "base": {"missing": error.message}}
    adapters = {name: _adapter_parameters(shape, recipe.lora_of(name)) for name in names}
    plan["parameters"] = {"base": shape.base_parameters(), "adapters": adapters}
    plan["memory_bytes"] = memory(recipe, shape, sum(adapters.values()), longest, by_length=task == ACTIVATED_TASK)
    return plan


def memory(
    recipe: Recipe, shape: Shape, adapter_parameters: int, source_tokens: int, *, by_length: bool = False
) -> dict[str, int]:
    """Estimated peak memory in bytes, with every reply at its limit. Scorers' models are not included.

    by_length: replies are sorted into passes of `SORTED_TOKENS`, unless the recipe says how many prompts run at once.
    """
    rl, count = recipe.rl, len(recipe.objectives)
    prompts = min(recipe.compute.prompts_per_forward or rl.prompts_per_step, rl.prompts_per_step)
    encoder_rows = prompts * count
    if by_length and recipe.compute.prompts_per_forward is None:
        encoder_rows = min(encoder_rows, max(1, SORTED_TOKENS // (rl.samples_per_prompt * rl.max_new_tokens)))
    decoder_rows = encoder_rows * rl.samples_per_prompt
    ranks = sum(recipe.lora_of(name).rank for name in recipe.objectives)
    prompt, reply = shape.prompt, shape.reply
    encoder = encoder_rows * source_tokens * prompt.kept(ranks) if recipe.lora.act_on == "all" else 0
    decoder = decoder_rows * rl.max_new_tokens * reply.kept(ranks)
    cross = decoder_rows * source_tokens * prompt.trained_keys_and_values
    replies = min(recipe.compute.rollout_slots, rl.prompts_per_step * rl.samples_per_prompt * count)
    kept = rl.max_new_tokens * reply.keys_and_values + source_tokens * prompt.keys_and_values
    cache = replies * kept * 2  # it doubles
    estimate = {
        "base": shape.base_parameters() * _FLOAT * 2,  # a second copy in the blocked layout
        "adapters": adapter_parameters * _FLOAT * 5,  # values, gradients, two moments, the best ones
        "gradient_pass": (encoder + decoder + cross) * _FLOAT + _LOGITS,
        "rollout": cache * _FLOAT,
    }
    total = estimate["base"] + estimate["adapters"] + max(estimate["gradient_pass"], estimate["rollout"])
    return {**estimate, "total": total}


def _shape_of(config: dict[str, Any]) -> Shape:
    from emorl_core.models.registry import family_of

    return family_of(config).shape(config)


def _adapter_parameters(shape: Shape, lora: LoraSettings) -> int:
    return shape.adapter_parameters(lora.rank, None if lora.targets == "all-linear" else lora.targets)
