"""Where adapters that act on the reply begin, and bases and templates where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emorl_core.models.registry import adapter_task
from emorl_core.text.tokenizer import HuggingFaceTokenizer
from tests.builders import tiny_t5
from tests.learn.causal_tasks import BRACKETS, END, START, SYSTEM, TURNS, causal_recipe, tiny_chat_base
from training.config import RecipeError
from training.data.prompts import Prompt
from training.data.records import Record
from training.data.wording import template_or_chat
from training.pipeline.invocation import check_invoked, invocation_of
from training.pipeline.prepare import Data, encode
from training.recipe.recipe import Recipe, parse_recipe

CAUSAL = "CAUSAL_LM"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: tiny_chat_base(folder / name, template=template)
        for name, template in {"turns": TURNS, "brackets": BRACKETS, "none": None}.items()
    }


def recipe_of(**values: Any) -> Recipe:
    return causal_recipe(lora={"rank": 4, "alpha": 8, "act_on": "reply"}, **values)


def text_of(tokenizer: HuggingFaceTokenizer, ids: tuple[int, ...] | None) -> str:
    """Control tokens included."""
    assert ids is not None
    return str(tokenizer._tokenizer.decode(list(ids)))


@pytest.mark.parametrize(
    ("base", "values", "begins"),
    [
        ("turns", {}, f"{START}assistant\n"),
        ("brackets", {}, "]"),  # nothing is written for a reply to come, so what closes the user's message
        ("none", {"prompt_template": "{prompt}\nReply:"}, "\nReply:"),
        ("none", {"prompt_template": "Client: {prompt}\n"}, "\n"),
        ("turns", {"prompt_template": f"{{prompt}}{END}"}, END),
    ],
)
def test_the_tokens_that_a_reply_begins_behind(
    bases: dict[str, Path], base: str, values: dict[str, Any], begins: str
) -> None:
    tokenizer = HuggingFaceTokenizer(bases[base])
    recipe = recipe_of(**values)
    found = invocation_of(recipe, tokenizer, adapter_task(bases[base]))
    assert text_of(tokenizer, found) == begins
    assert found is not None
    for text in ("i feel sad", "why?", "two\nlines\n", "", f"it says {START}assistant", "a ]"):
        assert tuple(template_or_chat(recipe.prompt_template, recipe.chat, tokenizer)(text))[-len(found) :] == found


def test_adapters_that_act_everywhere_begin_nowhere(bases: dict[str, Path]) -> None:
    assert invocation_of(causal_recipe(), HuggingFaceTokenizer(bases["turns"]), CAUSAL) is None


def test_a_template_that_ends_in_the_prompt_is_refused(bases: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"^lora.act_on is 'reply', but the template puts no token of its own behind"):
        invocation_of(recipe_of(prompt_template="Client: {prompt}"), HuggingFaceTokenizer(bases["none"]), CAUSAL)


def test_a_base_with_an_encoder_is_refused(tmp_path: Path) -> None:
    base = tiny_t5(tmp_path / "t5")
    with pytest.raises(
        RecipeError, match=r"^lora.act_on is 'reply', but the base reads prompts in an encoder, .* all$"
    ):
        invocation_of(recipe_of(prompt_template="{prompt} so"), HuggingFaceTokenizer(base), adapter_task(base))


def test_a_prompt_that_the_tokenizer_joins_with_the_template_is_refused() -> None:
    sound = Prompt(0, "a", (5, 7, 8), (5, 7, 8), where="prompts.csv:1")
    joined = Prompt(1, "b", (5, 78), (5, 78), where="prompts.csv:2")
    shorter = Prompt(1, "b", (5, 7, 8), (5, 78))
    check_invoked((7, 8), [sound])
    with pytest.raises(RecipeError, match=r"joins the end of a prompt \(prompts.csv:2\) with the template"):
        check_invoked((7, 8), [sound, joined])
    with pytest.raises(RecipeError, match=r"joins the end of a prompt \(prompt 1\) with the template"):
        check_invoked((7, 8), [sound, shorter])


@pytest.mark.parametrize("limit", [60, 64, 80, 200])
def test_a_long_prompt_is_cut_before_its_header(bases: dict[str, Path], limit: int) -> None:
    """In sampling and in the gradient pass alike, or the adapters would never begin."""
    tokenizer = HuggingFaceTokenizer(bases["turns"])
    recipe = recipe_of(max_source_tokens=limit, rl={"gradient_source_tokens": limit - 3})
    records = tuple(Record(f"word {i} " * n) for i, n in enumerate((1, 3, 9, 20)))
    found = encode(recipe, Data((), {"train": records, "validation": records}), tokenizer, CAUSAL)
    assert found.invocation is not None
    shown = [text_of(tokenizer, ids) for prompt in found.train for ids in (prompt.source, prompt.gradient_source)]
    for text in shown:
        assert text.startswith(f"{START}system\n{SYSTEM}{END}\n{START}user\nword")
        assert text.endswith(f"{END}\n{START}assistant\n")
    assert max(len(prompt.source) for prompt in found.train) <= limit
    bare = len(template_or_chat(recipe.prompt_template, recipe.chat, tokenizer)(""))
    assert found.cut == 2 * sum(len(record.prompt) + bare > limit for record in records)


def test_chat_and_template_are_one_or_the_other() -> None:
    recipe = causal_recipe()
    assert (recipe.prompt_template, recipe.chat is not None) == ("{prompt}", True)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe  # as a bundle's report holds it
    with pytest.raises(RecipeError, match="give at most one of prompt_template and chat"):
        causal_recipe(prompt_template="{prompt} so", chat={"system": "x"})
    with pytest.raises(
        RecipeError, match=r"chat.system: must be a text; leave it out for chats without a system message"
    ):
        causal_recipe(chat={"system": " "})
    assert causal_recipe(chat={}).chat is not None
