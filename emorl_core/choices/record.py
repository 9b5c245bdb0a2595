"""One choice: the drafts that were shown, by their weights, and what was done with each. Texts are stored as hashes
only."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from emorl_core.config import Strict

MAX_SHOWN = 16
Outcome = Literal["taken", "edited", "rejected", "left"]
Reason = Literal["warmer", "more_accurate", "shorter", "clearer", "less_directive", "safer", "other"]
REASONS: tuple[Reason, ...] = get_args(Reason)
Number = Annotated[float, Field(allow_inf_nan=False)]
# Objective names have the form that a bundle requires: any other text could be a person's words.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shown(Strict):
    """One draft."""

    weights: dict[Name, Annotated[Number, Field(ge=0.0)]] = Field(
        min_length=1,
        max_length=64,
        description="The draft's `centre`, or its `weights`: objective -> number, 0 or more.",
    )
    text_sha256: Hash = Field(description="SHA-256 of the draft in UTF-8, in place of the draft.")
    scores: dict[Name, Number] = Field(default_factory=dict, max_length=64, description="Objective -> score.")
    outcome: Outcome = Field(
        "left", description="taken, edited (taken after changes), rejected, or left: not chosen, not judged."
    )

    @model_validator(mode="after")
    def _some_weight(self) -> Shown:
        if not sum(self.weights.values()) > 0.0:
            raise ValueError("weights are all 0; allowed: at least one above 0")
        return self


class Comparison(Strict):
    """What was done with the drafts that were seen side by side."""

    shown: list[Shown] = Field(min_length=1, max_length=MAX_SHOWN, description="The drafts side by side.")
    reason: Reason | None = Field(None, description="Why, out of a fixed list.")

    @model_validator(mode="after")
    def _one_taken(self) -> Comparison:
        outcomes = [draft.outcome for draft in self.shown]
        if sum(outcome in ("taken", "edited") for outcome in outcomes) > 1:
            raise ValueError("shown: more than one draft was taken or edited; allowed: one")
        if set(outcomes) == {"left"}:
            raise ValueError("shown: no draft was taken, edited or rejected; allowed: at least one")
        return self

    @property
    def taken(self) -> int | None:
        """The place of the draft that was taken, edited or not; None where all were turned down."""
        chosen = [i for i, draft in enumerate(self.shown) if draft.outcome in ("taken", "edited")]
        return chosen[0] if chosen else None


class Choice(Comparison):
    """What a person did with them."""

    user: Label = Field(description="Whose choice it was: a label of letters, digits and _ . @ -, not a name.")
