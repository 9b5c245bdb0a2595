"""Prompts as token ids, in which only the template can write control tokens.

A tokenizer reads the name of a control token (`</s>`, `[SEP]`, `<extra_id_0>`) as that token anywhere. In a template
that is intended; in a prompt it would end the text or forge a separator, so there the name is plain text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece that stands for one byte, where a tokenizer falls back to bytes
_BYTE_NAME = r"0x[0-9A-F]{2}>"
_SHORT = 500  # characters
Span = tuple[int, int]


class PromptEncoder(Protocol):
    """`encode` takes a prompt and the template's parts around it; `whole`: add the special tokens that the model
    expects; else it is part of a longer text."""

    def encode(self, before: str, prompt: str, after: str, *, whole: bool = True) -> list[int]: ...

    def count(self, text: str) -> int: ...


def prompt_encoder(tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
    """For a tokenizer of the `tokenizers` library, or for one written in Python (ByT5)."""
    if not tokenizer.is_fast:
        return _PythonEncoder(tokenizer)
    return _FastEncoder(tokenizer.backend_tokenizer, set(tokenizer.all_special_ids), tokenizer.unk_token_id)


def encoded(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> Encoding:
    """`Tokenizer.encode`, which holds the GIL while it runs. A batch of one releases it, but is slower for short
    texts."""
    if len(text) <= _SHORT:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]


class _FastEncoder:
    """Encodes prompt and template as one text, so that pieces may span both. Only if the prompt produced a control
    token is the text encoded again, with the names in the prompt split in two."""

    def __init__(self, tokenizer: Tokenizer, special: set[int], unknown: int | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._unknown = (unknown, tokenizer.id_to_token(unknown) if unknown is not None else "")
        self._bytes = {i for piece, i in tokenizer.get_vocab().items() if _BYTE.fullmatch(piece)}
        self._special = special | {i for i, token in added.items() if token.special}
        self._added = self._special | set(added)
        self._text = _text_tokenizer(tokenizer, [token.content for token in added.values()])

    def encode(self, before: str, prompt: str, after: str, *, whole: bool = True) -> list[int]:
        text = before + prompt + after
        start, end = len(before), len(before) + len(prompt)
        encoding = encoded(self._tokenizer, text, add_special_tokens=whole)
        of_template: list[Span] = []
        control = set(self._special)  # and other tokens that the template uses like one
        inside: list[tuple[int, str]] = []
        for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True):
            if a == b:
                continue  # added by the post-processor
            covered = text[max(a, start) : min(b, end)].strip()
            if covered:
                inside.append((token, text[a:b].strip()))
            elif token in self._added:
                of_template.append((a, b))
                control.add(token)
        if not any(self._is_forged(token, text, control) for token, text in inside):
            return list(encoding.ids)
        as_text = self._as_text(text, of_template)
        return list((self._tokenizer.post_process(as_text) if whole else as_text).ids)

    def count(self, text: str) -> int:
        return len(encoded(self._tokenizer, text, add_special_tokens=False))

    def _is_forged(self, token: int, text: str, control: set[int]) -> bool:
        """Whether `text`, from the prompt, spells the token's name; unknown tokens and byte fallback do not."""
        unknown, name = self._unknown
        if token == unknown:
            return text == name
        return token in control or (token in self._bytes and len(text) > 1)

    def _as_text(self, whole: str, of_template: list[Span]) -> Encoding:
        """`whole` as plain text, except the template's control tokens."""
        from tokenizers import Encoding

        parts: list[Encoding] = []
        at = 0
        for a, b in of_template:
            parts += [encoded(self._text, whole[at:a]), encoded(self._tokenizer, whole[a:b], add_special_tokens=False)]
            at = b
        parts.append(encoded(self._text, whole[at:]))
        return Encoding.merge(parts, growing_offsets=True)


class ChatEncoder(_FastEncoder):
    """Encodes chats rendered by a template that writes all control tokens itself, including the first and the last."""

    def __init__(self, tokenizer: Tokenizer, special: set[int], unknown: int | None, template: str) -> None:
        """template: its source; every added token that it names counts as a control token, special or not (`<think>`,
        for example)."""
        super().__init__(tokenizer, special, unknown)
        added = tokenizer.get_added_tokens_decoder().items()
        self._control = self._special | {i for i, token in added if token.content in template}

    def names(self, text: str) -> list[Span]:
        """The parts of a client's text that would be read as control tokens."""
        encoding = encoded(self._tokenizer, text, add_special_tokens=False)
        return [
            (a, b)
            for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
            if a < b and self._is_forged(token, text[a:b].strip(), self._control)
        ]

    def encode_chat(self, whole: str, as_text: list[Span]) -> list[int]:
        """whole: a rendered chat; as_text: the spans of `names` in it that clients wrote."""
        encoding = encoded(self._tokenizer, whole, add_special_tokens=False)
        if not as_text:
            return list(encoding.ids)
        of_template = [
            (a, b)
            for token, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)
            if token in self._added and not any(start < b and a < end for start, end in as_text)
        ]
        return list(self._as_text(whole, of_template).ids)


def _text_tokenizer(tokenizer: Tokenizer, names: list[str]) -> Tokenizer:
    """The same model without added tokens. Its vocabulary still has their names, which a unigram model would find in
    any text; a name that is split after its first character cannot be found."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    text = Tokenizer(tokenizer.model)  # shared, not copied
    if tokenizer.normalizer is not None:
        text.normalizer = tokenizer.normalizer
    ends = [(re.escape(name[0]), re.escape(name[1:])) for name in names if len(name) > 1] + [("<", _BYTE_NAME)]
    cut = pre_tokenizers.Split(Regex("|".join(f"{first}(?={rest})" for first, rest in ends)), "isolated")
    own = tokenizer.pre_tokenizer
    text.pre_tokenizer = cut if own is None else pre_tokenizers.Sequence([own, cut])
    return text


class _PythonEncoder:
    """Encodes the parts one by one, for the tokenizers that transformers still implements in Python, whose pieces never
    span parts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def encode(self, before: str, prompt: str, after: str, *, whole: bool = True) -> list[int]:
        parts = ((before, False), (prompt, True), (after, False))
        ids = [
            token
            for part, as_text in parts
            for token in self._tokenizer.encode(part, add_special_tokens=False, split_special_tokens=as_text)
        ]
        return list(self._tokenizer.build_inputs_with_special_tokens(ids)) if whole else ids

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))
