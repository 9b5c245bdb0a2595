"""SmolLM2-135M-Instruct behind a bundle with chat: against `transformers.generate`, and by the unchanged client."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from emorl_core.bundles.bundle import BASE_DIR, BaseRef, BundleSpec, ChatSpec, write_spec
from emorl_core.ensemble import Ensemble
from server.settings import Settings
from tests.http.harness import live

pytestmark = [pytest.mark.slow, pytest.mark.real_model]
SYSTEM = "You are helpful."
CHATS = (
    "I can't keep up at work.",
    "What is the capital of France?",
    "My mother left again and nobody listens.",
    "Name three fruits.",
    "How do I stop smoking?",
    "Write one line about the sea.",
    "Why is the sky blue?",
    "I feel tired all the time.",
    "Give me a recipe for pancakes.",
    "What is 12 times 12?",
    "Translate 'good morning' to Spanish.",
    "Who wrote Hamlet?",
    "I am afraid of flying.",
    "Explain gravity to a child.",
    "What should I do on a rainy day?",
    "List the days of the week.",
    "My friend does not talk to me any more.",
    "How long does a cat live?",
    "Tell me a joke about computers.",
    "I want to change, but I don't know how to start.",
)
TOKENS = 24


def real_bundle(folder: Path, base: Path, **fields: Any) -> Path:
    (folder / BASE_DIR).symlink_to(base, target_is_directory=True)
    spec: dict[str, Any] = {
        "name": "real",
        "base": BaseRef(path=BASE_DIR),
        "chat": ChatSpec(system=SYSTEM),
        "objectives": {},
    }
    write_spec(folder, BundleSpec.model_validate({**spec, **fields}))
    return folder


@pytest.fixture(scope="module")
def loaded(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = real_bundle(tmp_path_factory.mktemp("real"), real_model)
    return Ensemble.load(folder, device="cpu", dtype="float32", quantize="off")


@pytest.fixture
def ensemble(loaded: Ensemble) -> Ensemble:
    """Without anything that another test has read."""
    loaded.engine.runner.prefill_cache.clear()
    return loaded


def test_against_hf_generate_twenty_chats(real_model: Path, ensemble: Ensemble) -> None:
    """The library reads all chats in one batch, padded on the left."""
    found = ensemble.generate(list(CHATS), weights={"base": 1.0}, max_new_tokens=TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(real_model, padding_side="left")
    library = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    ends = list(ensemble.engine.facts.eos_token_ids)
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=ends[0], eos_token_id=ends)
    read = tokenizer.apply_chat_template(
        [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": chat}] for chat in CHATS],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = library.generate(**read, generation_config=settings)
    for row, completion in zip(out[:, read["input_ids"].shape[1] :].tolist(), found, strict=True):
        length = next((place for place, token in enumerate(row, 1) if token in ends), TOKENS)
        assert list(completion.token_ids) == row[:length]
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def test_three_turns_by_the_unchanged_client(ensemble: Ensemble) -> None:
    history: list[Any] = []
    extra = {"objective_weights": {"base": 1.0}}
    with (
        live(Settings(port=0), ensemble) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as ai,
    ):
        for said in ("My name is Ada. Say hello.", "What is the capital of France?", "What is my name?"):
            history.append({"role": "user", "content": said})
            answer = ai.chat.completions.create(
                model="real", messages=history, temperature=0, max_tokens=TOKENS, extra_body=extra
            )
            text = answer.choices[0].message.content
            assert text
            history.append({"role": "assistant", "content": text})
    assert "Paris" in history[3]["content"]
    ensemble.engine.runner.prefill_cache.clear()
    for turn in (1, 3, 5):
        alone = ensemble.generate(messages=history[:turn], weights={"base": 1.0}, max_new_tokens=TOKENS)
        assert alone.text == history[turn]["content"]


def test_a_turn_computes_only_what_is_new_in_it(ensemble: Ensemble) -> None:
    """By the engine's counters: all but the last token are read, the last one is fed; the reply that the turn before
    ended with is known up to the token that ended it."""
    history: list[dict[str, str]] = []
    known: tuple[int, ...] = ()
    for said in ("My name is Ada. Say hello.", "What is the capital of France?", "What is my name?"):
        history.append({"role": "user", "content": said})
        request = ensemble.request(messages=history, weights={"base": 1.0}, max_new_tokens=TOKENS)
        before = ensemble.engine.stats
        done = ensemble.generate(messages=history, weights={"base": 1.0}, max_new_tokens=TOKENS)
        after = ensemble.engine.stats
        same = takewhile(lambda pair: pair[0] == pair[1], zip(known, request.prompt_ids[:-1], strict=False))
        begun = len(list(same))
        assert begun >= len(known) - 1, "the chat template writes what was said before once more"
        assert after.prefill_tokens_found - before.prefill_tokens_found == begun
        assert after.prefill_tokens_computed - before.prefill_tokens_computed == len(request.prompt_ids) - 1 - begun
        known = (*request.prompt_ids, *done.token_ids)[:-1]
        history.append({"role": "assistant", "content": done.text})


SENTENCES = {
    "warm": "You are a warm friend. Comfort the person and show that you care.",
    "short": "Answer with one short question and nothing else.",
    "pirate": "You are a pirate. Talk like a pirate, with arr and matey.",
}
STATEMENTS = (
    "I can't keep up at work.",
    "My mother left again.",
    "I feel tired all the time.",
    "Nobody listens to me.",
    "I want to stop smoking.",
    "I lost my job today.",
    "I am afraid of flying.",
    "My friend does not talk to me any more.",
    "I can't sleep at night.",
    "I passed my exam!",
    "My dog is sick.",
    "I moved to a new city.",
    "I drink too much.",
    "My boss shouts at me.",
    "I miss my sister.",
    "I have no money left.",
    "I want to change my life.",
    "My son will not do his homework.",
    "I had a fight with my husband.",
    "I am bored at home.",
)


def test_three_sentences_steer_an_untrained_model(real_model: Path, tmp_path: Path) -> None:
    objectives = {name: {"prompt": {"system": sentence}} for name, sentence in SENTENCES.items()}
    ensemble = Ensemble.load(real_bundle(tmp_path, real_model, objectives=objectives), device="cpu", dtype="float32")
    vectors = [{name: 1.0} for name in SENTENCES]
    swept = ensemble.sweep(list(STATEMENTS), vectors, max_new_tokens=TOKENS // 2)
    distinct = [len(swept.distinct(i)) for i in range(len(STATEMENTS))]
    assert sum(count == 3 for count in distinct) >= 15, distinct
