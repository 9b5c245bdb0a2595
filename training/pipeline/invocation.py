"""The invocation tokens of activated adapters: those at the end of every prompt, after which the reply starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from emorl_core.adapters.adapter import ACTIVATED_TASK
from emorl_core.models.registry import adapter_task
from emorl_core.models.t5.family import T5Family
from emorl_core.text.tokenizer import HuggingFaceTokenizer, Tokenizer
from training.config import RecipeError
from training.data.prompts import Prompt
from training.data.wording import template_or_chat
from training.recipe.recipe import Recipe

# Ends of prompts that a tokenizer may merge with the following text in different ways.
_PROBES = (
    "a",
    "I can't.",
    "why?",
    "no!",
    "12",
    "so ",
    "two\nlines\n",
    "so,",
    "(so)",
    'say "so"',
    "é",
    "日本",
    "🙂",
    "a:",
)


def invocation_of(recipe: Recipe, tokenizer: Tokenizer, task: str) -> tuple[int, ...] | None:
    """The tokens from which adapters act; None where they act everywhere.

    In a chat they are the chat template's generation prompt (`<|im_start|>assistant`, for example). If there is none,
    and for prompt templates, they are the longest common suffix of all prompts.

    task: PEFT's task type of the base's family. Raises `RecipeError` if an adapter cannot start at the reply.
    """
    if recipe.lora.act_on == "all":
        return None
    _check_task(task)
    encode = template_or_chat(recipe.prompt_template, recipe.chat, tokenizer)
    tokens = _common_end([tuple(encode(probe)) for probe in _PROBES])
    header = tuple(tokenizer.chat(recipe.chat.system).header()) if recipe.chat is not None else ()
    if header and tokens[-len(header) :] == header:
        return header
    if not tokens:
        raise _refused(
            "the template puts no token of its own behind the prompt, so there is none to begin at; "
            "allowed: all, or a template that ends in words, such as '{prompt}\\nReply:', or a chat"
        )
    return tokens


def check_start(recipe: Recipe, start: Path | None) -> None:
    """The same checks as `invocation_of`, before a warm start is run.

    start: the checkpoint it starts from, which has the base's tokenizer and family; None: a T5 from scratch.
    """
    if start is None and recipe.lora.act_on == "reply":
        _check_task(T5Family.adapter_task)
    elif start is not None:
        invocation_of(recipe, HuggingFaceTokenizer(start), adapter_task(start))


def _check_task(task: str) -> None:
    if task != ACTIVATED_TASK:
        raise _refused("the base reads prompts in an encoder, where no adapter can begin; allowed: all")


def check_invoked(invocation: tuple[int, ...], prompts: Iterable[Prompt]) -> None:
    """Raises `RecipeError` for a prompt whose end the tokenizer merges with the template, so that the adapters would
    not act in its reply."""
    for prompt in prompts:
        for ids in (prompt.source, prompt.gradient_source):
            if ids[-len(invocation) :] != invocation:
                raise _refused(
                    f"the tokenizer joins the end of a prompt ({prompt.where or f'prompt {prompt.index}'}) with the "
                    "template; allowed: all, or a template that begins a new line or a control token after the prompt"
                )


def _refused(reason: str) -> RecipeError:
    return RecipeError(f"lora.act_on is 'reply', but {reason}", param="lora.act_on")


def _common_end(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Their longest common suffix."""
    first, size = sequences[0], 0
    while size < min(map(len, sequences)) and len({ids[len(ids) - size - 1] for ids in sequences}) == 1:
        size += 1
    return first[len(first) - size :]
