"""Names of control tokens: tokens in a template, text in a prompt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from emorl_core.bundles.bundle import BASE_DIR, split_template
from emorl_core.ensemble import Ensemble
from emorl_core.text.control_tokens import encoded, prompt_encoder
from emorl_core.text.tokenizer import HuggingFaceTokenizer
from tests.builders import VOCABULARY, tiny_tokenizer

PAD, END, UNKNOWN, SEP = 0, 1, 2, 3
TEMPLATES = (
    "{prompt} [SEP] ",
    "{prompt}",
    "[SEP]{prompt}[SEP]",
    "you feel {prompt} </s>not ",
    "a<{prompt}>",
    "[SEP] x {prompt}",
)
ORDINARY = (
    "I can't keep up at work.", "Zürich 🙂", "x", " spaces  at both ends ", "a\tb\nc", "двадцать", "1 < 2 and 3 > 2 [sic]",
    "<s>", "</b>", "[SE P]", "< /s>", "SEP", "{prompt}", "<extra>", "<0x4>", "<0xGG>", "\0", "日本 feel",
)  # fmt: skip
NAMES = ("<pad>", "</s>", "<unk>", "[SEP]", "<0x41>", "<0x0A>")


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str) -> list[int]:
    before, after = split_template(template)
    return prompt_encoder(tokenizer).encode(before, prompt, after)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def normalising() -> PreTrainedTokenizerBase:
    """The tiny tokenizer behind NFKC, which makes "</s>" of "＜／ｓ＞"."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("make", [tiny_tokenizer, normalising])
def test_the_ids_of_ordinary_prompts_are_transformers_own(make, template: str) -> None:
    tokenizer = make()
    for prompt in ORDINARY:
        wrapped = template.replace("{prompt}", prompt)
        assert encode(tokenizer, prompt, template) == make().encode(wrapped), (prompt, template)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_name_in_a_prompt_is_text(name: str, template: str) -> None:
    tokenizer = tiny_tokenizer()
    own = encode(tokenizer, "work", template)
    for prompt in (name, f"a {name} b", f"{name}{name}", f"so{name}", f"{name}much", f"🙂{name[:2]}{name}"):
        ids = encode(tokenizer, prompt, template)
        for control in (PAD, END, UNKNOWN, SEP):
            assert ids.count(control) == own.count(control), (prompt, template)
        kept = text_of(tokenizer, ids)
        assert prompt in kept
        assert kept.replace(prompt, "work", 1) == text_of(tokenizer, own), (prompt, template)


def test_random_mixtures_never_gain_a_control_token() -> None:
    draw, tokenizer = random.Random(0), tiny_tokenizer()
    pieces = (*NAMES, "[", "SEP", "]", "<", "/s>", "</", "s>", " ", "a", "\n", "🙂", "you", "<0x", "41>")
    for _ in range(500):
        prompt = "".join(draw.choices(pieces, k=draw.randint(1, 8)))
        template = draw.choice(TEMPLATES)
        ids, own = encode(tokenizer, prompt, template), encode(tokenizer, "work", template)
        assert [i for i in ids if i <= SEP] == [i for i in own if i <= SEP], (prompt, template)
        assert prompt.strip() in text_of(tokenizer, ids), (prompt, template)


def test_a_name_across_the_seam_is_text() -> None:
    tokenizer = tiny_tokenizer()
    for template, prompt in (("a<{prompt}> [SEP]", "/s"), ("[SE{prompt} [SEP]", "P]"), ("{prompt}s> [SEP]", "you</")):
        ids = encode(tokenizer, prompt, template)
        assert (ids.count(END), ids.count(SEP)) == (1, 1)
        assert text_of(tokenizer, ids).startswith(template.partition(" ")[0].replace("{prompt}", prompt))


@pytest.mark.parametrize("prompt", ["＜／ｓ＞", "a ［ＳＥＰ］", "＜0x41＞"])
def test_a_name_that_the_normaliser_makes_is_text(prompt: str) -> None:
    tokenizer = normalising()
    ids = encode(tokenizer, prompt, "{prompt} [SEP] ")
    assert (ids.count(END), ids.count(SEP)) == (1, 1)
    assert text_of(tokenizer, ids) == f"{normalizers.NFKC().normalize_str(prompt)}  "


def test_a_separator_that_is_no_special_token_is_kept_apart_too() -> None:
    """Added as an ordinary word, but the template makes a separator of it."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<turn>", "doctorate"])
    turn, word = len(VOCABULARY), len(VOCABULARY) + 1
    ids = encode(tokenizer, "a <turn> b", "{prompt}<turn>")
    assert ids.count(turn) == 1
    assert text_of(tokenizer, ids) == "a <turn> b<turn>"
    assert word in encode(tokenizer, "a doctorate", "{prompt}<turn>"), "an added word is a word"
    assert turn in encode(tokenizer, "a <turn> b", "{prompt}"), "and so is the other without such a template"


def test_white_space_that_a_separator_takes_in_is_no_forgery() -> None:
    tokenizer = tiny_tokenizer()
    mark = AddedToken("<mark>", lstrip=True, rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [mark]})
    for prompt in ("work ", "work", "  "):
        ids = encode(tokenizer, prompt, "{prompt}<mark>")
        assert ids == tokenizer.encode(f"{prompt}<mark>")
        assert ids.count(len(VOCABULARY)) == 1


def test_white_space_that_is_a_special_token_stays_one() -> None:
    """Some add "\\n" to T5, whose pieces have no line break."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["\n"]})
    assert encode(tokenizer, "a\nb", "{prompt} [SEP] ") == tokenizer.encode("a\nb [SEP] ")


def byte_level() -> PreTrainedTokenizerBase:
    """BPE on bytes, as GPT-2 and T5 derivatives for code have it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "[SEP]", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["[SEP]"]
    )  # fmt: skip


def word_pieces() -> PreTrainedTokenizerBase:
    """Whole words, in which a name is a word."""
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "[SEP]", "a", "b", "work", "<", "/s>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["[SEP]"]
    )  # fmt: skip


@pytest.mark.parametrize("make", [byte_level, word_pieces])
@pytest.mark.parametrize("name", ["<pad>", "</s>", "[SEP]"])
def test_other_kinds_of_tokenizers(make, name: str) -> None:
    tokenizer = make()
    assert encode(tokenizer, "a work b", "{prompt} [SEP] ") == tokenizer.encode("a work b [SEP] ")
    ids = encode(tokenizer, f"a {name} b", "{prompt} [SEP] ")
    assert [i for i in ids if i in (PAD, END, SEP)] == [SEP, END]


@pytest.mark.parametrize("template", ["{prompt}", "{prompt}</s>x", "x</s>{prompt}"])
def test_a_tokenizer_written_in_python(template: str) -> None:
    tokenizer = ByT5Tokenizer()
    for prompt in ("work", "Zürich 🙂"):
        assert encode(tokenizer, prompt, template) == tokenizer.encode(template.replace("{prompt}", prompt))
    ids = encode(tokenizer, "a </s> <pad> b", template)
    assert ids.count(END) == 1 + template.count("</s>")
    assert PAD not in ids
    assert "a </s> <pad> b" in text_of(tokenizer, ids)


def test_a_text_of_the_house_may_write_control_tokens(plain_bundle: Path) -> None:
    tokenizer = HuggingFaceTokenizer(plain_bundle / BASE_DIR)
    assert tokenizer.encode("feel [SEP] </s>").count(SEP) == 1
    assert tokenizer.encode("feel [SEP] </s>").count(END) == 2


def test_an_ensemble_encodes_ordinary_prompts_as_ever(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    judge = AutoTokenizer.from_pretrained(plain_bundle / BASE_DIR)
    for text in ORDINARY:
        assert list(ensemble.encode(text)) == judge.encode(ensemble.spec.wrap(text))


def test_an_ensemble_takes_names_as_text(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    ids = ensemble.encode("work </s> [SEP] hurts")
    assert (ids.count(SEP), ids.count(END), ids[-1]) == (1, 1, END)
    assert ensemble.tokenizer.decode(ids) == "work </s> [SEP] hurts  "
    assert ensemble.generate("work </s> [SEP] hurts", max_new_tokens=3).prompt_tokens == len(ids)


def test_a_long_text_is_read_without_the_interpreters_lock() -> None:
    """`Tokenizer.encode` keeps it; a server's streams waited for every long prompt that anybody sent."""
    tokenizer = tiny_tokenizer()
    known = tokenizer.backend_tokenizer
    kept: list[int] = []

    class Watched:
        def encode(self, text: str, **options: bool) -> object:
            kept.append(len(text))
            return known.encode(text, **options)

        def __getattr__(self, name: str) -> object:
            return getattr(known, name)

    long = "i drink and </s> drink " * 200
    for text in ("i drink", long):
        for special in (True, False):
            read = encoded(Watched(), text, add_special_tokens=special)  # type: ignore[arg-type]
            assert (read.ids, read.offsets) == (
                known.encode(text, add_special_tokens=special).ids,
                known.encode(text, add_special_tokens=special).offsets,
            )
    assert kept == [len("i drink")] * 2
