"""Sentence frames of the synthetic grammar (`frames.yaml`): client statements of a situation, and replies by style."""

from __future__ import annotations

from training.data.synthetic.styles import STYLES, Style
from training.data.synthetic.tables import table

_TABLE = table("frames")

CLIENT: tuple[str, ...] = tuple(_TABLE["client"])
CLIENT_GOOD: tuple[str, ...] = tuple(_TABLE["client_good"])
# A style replies with one of its frames that use the most slots of the situation (see `grammar.reply`).
REPLIES: dict[Style, tuple[str, ...]] = {style: tuple(_TABLE["replies"][style]) for style in STYLES}
REPLIES_GOOD: dict[Style, tuple[str, ...]] = {style: tuple(_TABLE["replies_good"][style]) for style in STYLES}
