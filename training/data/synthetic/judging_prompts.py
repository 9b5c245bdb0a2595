"""The client statements for evaluating the demo (`judging_prompts.yaml`)."""

from __future__ import annotations

from training.data.synthetic.tables import table

EVALUATION_PROMPTS: tuple[str, ...] = tuple(table("judging_prompts"))
