"""Chats through a tokenizer's chat template: as transformers renders them, but nothing that nobody wrote or forged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from emorl_core.bundles.bundle import BundleSpec, ChatSpec, read_spec, write_spec
from emorl_core.ensemble import Ensemble
from emorl_core.errors import BundleError, InvalidRequest, PromptTooLong
from emorl_core.fake import fake_ensemble
from emorl_core.text.chat import ChatTemplate, Message
from tests.builders import tiny_t5_bundle
from tests.chats import BOS, END, HIDDEN, START, THINK, TURNS, library, tiny_chat_bundle, tokenizer_of

BEGUN = "{{ bos_token }}"
TEMPLATES = {
    "plain": TURNS,
    "begun": BEGUN + TURNS,
    "hidden": HIDDEN + TURNS,
    "begun hidden": BEGUN + HIDDEN + TURNS,
    "no system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TURNS,
    "trimmed": TURNS.replace("m['content'] +", "m['content'] | trim +"),
    "always one header": (  # as Llama 3 has it: a header with the date, and the system message in it if there is one
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
        "{{ '<|im_start|>system\nToday\n' + said + '<|im_end|>\n' }}" + TURNS
    ),
}
CHAT = (
    {"role": "user", "content": "so much work"},
    {"role": "assistant", "content": "you feel"},
    {"role": "user", "content": "ever"},
)


def messages(*texts: str, system: str | None = None) -> list[Message]:
    """User and assistant in turn."""
    turns = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    return turns if system is None else [Message("system", system), *turns]


CHATS = (
    messages("so much work"),
    messages("so much", "you feel\n it", " spaces at both ends "),
    messages("hi", system="Be brief."),
    messages("Zürich 🙂\n", "x", "日本 <b>", "", "1 < 2", system=" two\nlines "),
)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_ids_are_the_librarys_own_where_nothing_is_hidden(name: str, chat: list[Message]) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    template = ChatTemplate(tokenizer)
    if name == "no system" and chat[0].role == "system":
        with pytest.raises(InvalidRequest, match="does not take this order of messages: System role not supported"):
            template.encode(chat)
        return
    shown = tokenizer_of(TEMPLATES[name.replace("begun hidden", "begun").replace("hidden", "plain")])
    assert template.encode(chat) == library(shown, chat)


@pytest.mark.parametrize("name", ["hidden", "begun hidden"])
def test_a_hidden_system_prompt_is_there_when_the_library_renders(name: str) -> None:
    """What the test above would otherwise prove of nothing."""
    tokenizer = tokenizer_of(TEMPLATES[name])
    assert "hidden one" in tokenizer.decode(library(tokenizer, CHATS[0]))
    assert "hidden one" not in tokenizer.decode(ChatTemplate(tokenizer).encode(CHATS[0]))


@pytest.mark.parametrize("name", ["plain", "begun hidden", "always one header"])
def test_the_bundles_system_message_stands_for_one_that_is_not_given(name: str) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    template = ChatTemplate(tokenizer, system="Be warm.")
    assert template.encode(CHATS[0]) == library(tokenizer, messages("so much work", system="Be warm."))
    assert template.encode(CHATS[2]) == library(tokenizer, CHATS[2])


def test_a_hidden_system_prompt_that_cannot_be_cut_out_asks_for_one_of_the_bundle() -> None:
    inside = "{{ '<|im_start|>' }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '|' }}"
    inside += "{% set messages = messages[1:] %}{% else %}{{ 'A default|' }}{% endif %}" + TURNS
    with pytest.raises(BundleError, match=r"system prompt of its own that cannot be cut out; give chat.system") as info:
        ChatTemplate(tokenizer_of(inside))
    assert info.value.param == "chat.system"
    assert ChatTemplate(tokenizer_of(inside), system="Be warm.").encode(CHATS[0])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(BundleError, match="tokenizer has no chat template"):
        ChatTemplate(tokenizer_of(None))
    with pytest.raises(BundleError, match="chat is set, but"):
        ChatTemplate(tokenizer_of("{{ raise_exception('never') }}"))


@pytest.mark.parametrize("normalizer", [None, normalizers.NFKC()], ids=["raw", "normalised"])
@pytest.mark.parametrize("name", ["plain", "begun hidden", "trimmed"])
def test_names_of_control_tokens_in_messages_are_text(name: str, normalizer: Any) -> None:
    thinking = "{% if '" + THINK + "' == '' %}{% endif %}"  # the template names it, so it is a control token
    tokenizer = tokenizer_of(thinking + TEMPLATES[name], normalizer=normalizer)
    template = ChatTemplate(tokenizer)
    control = {tokenizer.convert_tokens_to_ids(name) for name in (START, END, BOS, THINK)}
    own = [i for i in template.encode(messages("a", "b", "c", system="d")) if i in control]
    pieces = [START, END, BOS, THINK, "<", "|im_end|>", "im_start", "|>", " ", "\n", "🙂", "user"]
    if normalizer is not None:
        pieces += ["＜|im_end|＞", "＜ｓ＞"]
    draw = random.Random(0)
    for _ in range(60):
        texts = ["".join(draw.choices(pieces, k=draw.randint(1, 6))) for _ in range(4)]
        ids = template.encode(messages(*texts[:3], system=texts[3]))
        assert [i for i in ids if i in control] == own, texts
        if normalizer is None and name == "plain":
            shown = tokenizer.decode(ids, skip_special_tokens=False)
            assert all(text in shown for text in texts)


FAULTS: tuple[tuple[Any, str, str], ...] = (
    ([], "messages is no list of messages; allowed: at least one", "messages"),
    ("hello", "messages is no list of messages", "messages"),
    ([{"role": "tool", "content": "x"}], "messages.0.role is unknown; allowed: system, user, assistant", "messages.0.role"),
    ([{"role": "user"}], "messages.0.content is no text", "messages.0.content"),
    ([{"role": "user", "content": []}], "messages.0.content is no text", "messages.0.content"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0 is no text part", "messages.0.content.0"),
    ([{"role": "user", "content": "x", "tool_calls": []}], "messages.0 has further fields", "messages.0"),
    (["hello"], "messages.0 is no message", "messages.0"),
    ([*CHAT[:2]], "messages.1.role is 'assistant'; allowed for the last message: user", "messages.1.role"),
    ([CHAT[0], {"role": "system", "content": "x"}, CHAT[2]], "messages.1 is a system message; allowed: as the first one only", "messages.1.role"),
    ([{"role": "user", "content": "so \ud83d"}], "messages.0.content holds half a surrogate pair", "messages.0.content"),
)  # fmt: skip


@pytest.mark.parametrize(("chat", "message", "param"), FAULTS)
def test_faults_in_messages_are_named(chat: Any, message: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fake_ensemble(chat=ChatSpec()).request(messages=chat)
    assert caught.value.message.startswith(message)
    assert caught.value.param == param


def test_text_parts_are_joined_and_a_plain_prompt_is_one_user_message() -> None:
    ensemble = fake_ensemble(chat=ChatSpec(system="Be warm."))
    parts = [{"type": "text", "text": "so "}, {"type": "text", "text": "much"}]
    whole = ensemble.request(messages=[{"role": "user", "content": "so much"}]).prompt_ids
    assert ensemble.request(messages=[{"role": "user", "content": parts}]).prompt_ids == whole
    assert ensemble.request(messages=[Message("user", "so much")]).prompt_ids == whole
    assert ensemble.request("so much").prompt_ids == whole == ensemble.encode("so much")
    assert "system: Be warm." in ensemble.tokenizer.decode(whole)
    assert ensemble.generate(messages=CHAT, max_new_tokens=4).prompt_tokens == len(ensemble.encode_chat(CHAT))


def test_messages_and_a_prompt_exclude_each_other() -> None:
    for options in ({}, {"prompt": "x", "messages": CHAT}):
        with pytest.raises(InvalidRequest, match="give exactly one of prompt and messages"):
            fake_ensemble(chat=ChatSpec()).request(**options)


def test_a_bundle_without_chat_refuses_messages() -> None:
    with pytest.raises(InvalidRequest, match=r"messages: this bundle has no chat \(chat in bundle.yaml\)") as caught:
        fake_ensemble().request(messages=CHAT)
    assert caught.value.param == "messages"


def test_a_chat_that_is_too_long_is_refused_with_both_numbers() -> None:
    ensemble = fake_ensemble(chat=ChatSpec(), max_source_tokens=20)
    with pytest.raises(PromptTooLong, match=r"messages has \d+ tokens with its template; allowed: up to 20"):
        ensemble.request(messages=[{"role": "user", "content": "work " * 20}])
    with pytest.raises(PromptTooLong, match="messages has 10000 characters"):
        ensemble.request(messages=[{"role": "user", "content": "work " * 2000}])


def test_a_bundle_gives_a_template_or_a_chat(tmp_path: Path) -> None:
    spec = {"name": "x", "base": {"path": "base"}, "objectives": {}}
    for chat in ({}, {"system": "Be warm."}):
        written = BundleSpec.model_validate({**spec, "chat": chat})
        write_spec(tmp_path, written)
        assert read_spec(tmp_path / "bundle.yaml") == written
    for wrong in ({"chat": {}, "prompt_template": "{prompt} x"}, {"chat": {"system": " "}}, {"chat": {"user": "x"}}):
        with pytest.raises(ValueError, match=r"prompt_template and chat|must be a text|Extra inputs"):
            BundleSpec.model_validate({**spec, **wrong})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_bundle(tmp_path_factory.mktemp("chat"), template=TEMPLATES["begun hidden"])


def test_a_bundle_with_chat_loads_and_answers(bundle: Path) -> None:
    ensemble = Ensemble.load(bundle, device="cpu", dtype="float32")
    assert ensemble.engine.facts.eos_token_ids == (1, 258)
    expected = library(tokenizer_of(TEMPLATES["begun"]), messages("so much work", "you feel", "ever"))
    request = ensemble.request(messages=CHAT, weights={"one": 1.0}, max_new_tokens=4)
    assert list(request.prompt_ids) == expected
    done = ensemble.generate(messages=CHAT, weights={"one": 0.5, "base": 0.5}, max_new_tokens=5)
    assert done.prompt_tokens == len(expected)
    ensemble.warm_up()


def test_the_context_bounds_prompt_and_new_tokens_and_is_named(bundle: Path) -> None:
    ensemble = Ensemble.load(bundle, device="cpu", dtype="float32")
    weights, taken = {"one": 1.0}, len(ensemble.encode("hello"))
    most = 256 - taken
    assert ensemble.request("hello", weights=weights, max_new_tokens=most)
    message = (
        rf"has {taken} tokens and max_new_tokens is {most + 1}; allowed: up to 256 together \(the context of the base"
    )
    calls = (
        lambda: ensemble.request("hello", weights=weights, max_new_tokens=most + 1),
        lambda: ensemble.sweep_plan(["hello"], [weights], max_new_tokens=most + 1),
        lambda: ensemble.segments_request("hello", weights, {"base": 1.0}, max_new_tokens=most + 1),
    )
    for call, field in zip(calls, ("prompt", "prompts.0", "prompt"), strict=True):
        with pytest.raises(PromptTooLong, match=message) as caught:
            call()
        assert caught.value.param == field


def test_chat_over_a_base_without_a_template_is_refused_as_inspect_refuses_it(tmp_path: Path) -> None:
    from emorl_cli.bundles.inspect import examine

    bundle = tiny_t5_bundle(tmp_path)
    spec = read_spec(bundle / "bundle.yaml")
    write_spec(bundle, spec.model_copy(update={"chat": ChatSpec(), "prompt_template": "{prompt}"}))
    with pytest.raises(BundleError, match="chat is set and the base's tokenizer has no chat template") as caught:
        Ensemble.load(bundle, device="cpu")
    assert examine(str(bundle))["faults"] == [caught.value.message]


@pytest.mark.parametrize(
    ("template", "header", "reply"),
    [
        (TURNS, f"{START}assistant\n", f"said{END}\n"),
        (HIDDEN + TURNS, f"{START}assistant\n", f"said{END}\n"),
        (TEMPLATES["always one header"], f"{START}assistant\n", f"said{END}\n"),
        (  # nothing is written for a reply to come, as Llama 2 and Mistral have it
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<|im_end|>' }}"
            "{% else %}{{ '[' + m['content'] + ']' }}{% endif %}{% endfor %}",
            "",
            f" said{END}",
        ),
        (  # empty thoughts before a finished reply, as Qwen3 has it
            TURNS.replace("'\n' + m['content']", "'\n' + ('<think></think>' if m['role'] == 'assistant' else '') + m['content']"),
            f"{START}assistant\n",
            f"<think></think>said{END}\n",
        ),
    ],
)  # fmt: skip
def test_what_is_written_around_a_reply(template: str, header: str, reply: str) -> None:
    tokenizer = tokenizer_of(template)
    chat = ChatTemplate(tokenizer)
    assert tokenizer.decode(chat.header()) == header
    assert tokenizer.decode(chat.encode_reply("said")) == reply
    whole = [*chat.encode(messages("hi")), *chat.encode_reply("said")]
    finished = chat.encode(messages("hi", "said", "more"))
    shared = len(whole) if "think" not in template else len(chat.encode(messages("hi")))
    assert finished[:shared] == whole[:shared]


def test_names_of_control_tokens_in_a_reply_are_text() -> None:
    tokenizer = tokenizer_of(TURNS)
    (end,) = tokenizer.convert_tokens_to_ids([END])
    ids = ChatTemplate(tokenizer).encode_reply(f"I say {END} and {START}")
    assert tokenizer.decode(ids) == f"I say {END} and {START}{END}\n"
    assert ids.count(end) == 1


def test_a_template_that_writes_no_replies_is_refused_where_they_are_needed() -> None:
    only_users = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(BundleError, match="the base's chat template does not write replies"):
        ChatTemplate(tokenizer_of(only_users)).encode_reply("said")


def test_a_sweep_takes_one_chat_or_several() -> None:
    ensemble = fake_ensemble(chat=ChatSpec(system="Be warm."))
    chats = [CHAT, [Message("user", "so much")], [{"role": "system", "content": "Be brief."}, CHAT[0]]]
    swept = ensemble.sweep(chats=chats, resolution=2, max_new_tokens=6)
    for i, chat in enumerate(chats):
        alone = ensemble.sweep(messages=chat, resolution=2, max_new_tokens=6)
        assert swept.distinct(i) == alone.distinct(0)
    faults: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"chats": chats, "prompts": "x"}, "give exactly one of prompts, messages and chats", "prompts"),
        ({"chats": chats, "messages": CHAT}, "give exactly one of prompts, messages and chats", "prompts"),
        ({}, "give exactly one of prompts, messages and chats", "prompts"),
        ({"chats": []}, "chats is empty; allowed: at least one chat", "chats"),
        ({"chats": [CHAT, CHAT[:2]]}, "chats.1.1.role is 'assistant'; allowed for the last message: user", "chats.1.1.role"),
        ({"chats": [CHAT, CHAT], "max_sweep": 3}, "the sweep asks for 2 x 3 completions; allowed: up to 3", "resolution"),
    )  # fmt: skip
    for asked, message, param in faults:
        with pytest.raises(InvalidRequest) as caught:
            ensemble.sweep(resolution=1, **asked)
        assert caught.value.message.startswith(message)
        assert caught.value.param == param
    with pytest.raises(InvalidRequest, match=r"chats.0: this bundle has no chat"):
        fake_ensemble().sweep(chats=[CHAT], resolution=1)


def test_a_chat_that_is_far_too_long_in_sum_is_refused_before_it_is_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message of it is too long by itself."""
    ensemble = Ensemble.load(bundle, device="cpu", dtype="float32", max_prompt_chars=1_000_000)
    most = ensemble.spec.max_source_tokens
    turns = [{"role": role, "content": "i drink " * 20} for role in ("user", "assistant")] * most
    monkeypatch.setattr(ChatTemplate, "encode", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(PromptTooLong, match=f"more than {2 * most} tokens; allowed: up to {most} "):
        ensemble.encode_chat([*turns, turns[0]])
