"""Folds text for pattern lists, so that characters that look alike are equal.

Lower case without accents or apostrophes; words separated by one space; the end of a sentence is ` . `.
"""

from __future__ import annotations

import html
import unicodedata

import regex

_APOSTROPHES = regex.compile(r"['’‘‛ʼʹ′`´＇]")
# Format characters (zero-width ones, soft hyphens, marks of direction), accents, letters without a shape, and the tags
# of an editor that sends HTML: by name, or words between angle brackets would be left out.
_UNSEEN = regex.compile(
    r"(?:[\p{Cf}\p{Mn}\p{Me}\u115f\u1160\u3164\uffa0\u2800]"
    r"|</?(?:b|i|u|s|a|p|em|strong|mark|span|font|div|br|li|ul|ol|h[1-6])(?:\s+[\w-]+=[^<>]*)?\s*/?>)+"
)
_PAUSE = regex.compile(r"\.{2,}")
_SENTENCE_END = regex.compile(r"[.!?;。！？]+(?!\w)")
_NO_WORD = regex.compile(r"[^\p{L}\p{N}\n]+")
_INSIDE = regex.compile(r"(?<=\p{L})[0134579@$!|]+(?=\p{L})")  # k1ll, su!cide
_DIGITS = str.maketrans("0134579@$!|", "oieastgasil")
_SPELT = regex.compile(r"(?<!\p{L})(?:\p{L}[ .*_-]){2,}\p{L}(?!\p{L})")  # k i l l
_DRAWN_OUT = regex.compile(r"(\p{L})\1{2,}")
# Letters of other scripts that look like Latin ones, small capitals, white letters on black discs, squares and flags.
_LATIN = str.maketrans("авеіјкмһнорсѕтухуԁɡαεικνορτυχ", "abeijkmhhopcstyxydgaeikvoptux")
_LATIN |= str.maketrans("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz")
_LATIN |= {first + i: ord("a") + i for first in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}


def folded(text: str) -> tuple[str, ...]:
    """The text without invisible characters, and, if different, with a space for each of them: they may be inside a
    word or between two."""
    plain = _APOSTROPHES.sub("", unicodedata.normalize("NFKD", html.unescape(text))).casefold().translate(_LATIN)
    return tuple(dict.fromkeys(_words(_UNSEEN.sub(instead, plain)) for instead in ("", " ")))


def _words(text: str) -> str:
    text = _INSIDE.sub(lambda found: found[0].translate(_DIGITS), text)
    text = _SPELT.sub(lambda found: regex.sub(r"\P{L}", "", found[0]), _PAUSE.sub(" ", text))
    lines = _SENTENCE_END.sub("\n", " ".join(text.split()))
    return " ".join(_DRAWN_OUT.sub(r"\1", _NO_WORD.sub(" ", lines)).replace("\n", " . ").split())
