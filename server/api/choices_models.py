"""The HTTP models of choices, of the next pair to choose between, and of the weights that are learned."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated

from pydantic import BaseModel, Field, model_validator

from emorl_core.choices.learning import CREDIBLE
from emorl_core.choices.record import Choice, Comparison, Label
from emorl_core.errors import InvalidRequest
from server.api.fields import Body, FirstFault, Int, Weights, example
from server.door.errors import MissingField

MAX_CHOICES = 1000  # in one body
MAX_CANDIDATES = 64
_SHOWN = [
    {"weights": {"empathy": 1.0}, "text_sha256": sha256(b"You feel worn out.").hexdigest(), "outcome": "taken"},
    {"weights": {"fluency": 1.0}, "text_sha256": sha256(b"You work a lot.").hexdigest()},
]
Pair = Annotated[list[Annotated[Int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class ChoiceBody(Choice, Body):
    """`POST /choices`: the drafts that a person saw side by side, and what was done with each. No text."""

    model_config = example(user="counselor-7", shown=_SHOWN, reason="warmer")


class Kept(BaseModel):
    model_config = example(id=12)

    id: int = Field(description="Of the choice in the file; it is on disk.")


class Evidence(Body):
    """The choices to learn from: a user's recorded ones, or those in the body."""

    user: Label | None = Field(None, description="Whose kept choices to learn from; needs `choices_file`.")
    choices: Annotated[list[Comparison], FirstFault(), Field(max_length=MAX_CHOICES)] | None = Field(
        None, description="Instead: the choices themselves, of which nothing is kept."
    )

    @model_validator(mode="after")
    def _one(self) -> Evidence:
        if self.user is None and self.choices is None:
            raise MissingField("user: missing; exactly one of user and choices is required", param="user")
        if self.user is not None and self.choices is not None:
            raise InvalidRequest("give exactly one of user and choices", param="choices")
        return self


class NextBody(Evidence):
    """`POST /choices/next`."""

    model_config = example(user="counselor-7", candidates=[{"empathy": 1.0}, {"fluency": 1.0}, {"reflection": 1.0}])

    candidates: Annotated[list[Weights], FirstFault(), Field(min_length=2, max_length=MAX_CANDIDATES)] | None = Field(
        None,
        description="Weights to choose the pair among: those of different texts. Null: 16, spread over all mixes.",
    )
    without: Annotated[list[Pair], FirstFault(), Field(max_length=MAX_CANDIDATES**2)] = Field(
        default_factory=list, description="Pairs, by their places in `candidates`, that are not to come again."
    )


class NextPair(BaseModel):
    """The comparison that is expected to be most informative about the user's preferences."""

    model_config = example(pair=(0, 2), weights=[{"empathy": 1.0}, {"reflection": 1.0}], choices=3)

    pair: tuple[int, int] = Field(description="Places in `candidates`.")
    weights: list[dict[str, float]] = Field(description="Of the two.")
    choices: int = Field(description="How many this is based on.")


class LearnBody(Evidence):
    """`POST /profiles/learn`."""

    model_config = example(user="counselor-7")

    store: bool = Field(
        False,
        description="Keep what was learned as a profile by the user's label, in the place of what was kept before, and"
        " serve it from now on; needs `learn_profiles`, and a user with choices.",
    )

    @model_validator(mode="after")
    def _named(self) -> LearnBody:
        if self.store and self.user is None:
            raise InvalidRequest(
                "store is true without a user, by whose label the profile would be kept", param="store"
            )
        return self


class Learned(BaseModel):
    """A profile, and the uncertainty of its weights."""

    model_config = example(
        user="counselor-7",
        choices=20,
        weights={"reflection": 0.2, "empathy": 0.6, "fluency": 0.2},
        deviation={"reflection": 0.1, "empathy": 0.1, "fluency": 0.1},
        region={"reflection": (0.0, 0.4), "empathy": (0.4, 0.8), "fluency": (0.0, 0.4)},
        outline=[(0.0, 0.6, 0.4), (0.2, 0.8, 0.0), (0.4, 0.4, 0.2)],
        credible=CREDIBLE,
        profile=None,
    )

    user: str | None
    choices: int = Field(description="Choices among several drafts that it was learned from.")
    weights: dict[str, float] = Field(description="The posterior's mean.")
    deviation: dict[str, float] = Field(description="Its standard deviation, by objective.")
    region: dict[str, tuple[float, float]] = Field(
        description="Least and most weight in the smallest region that holds `credible` of the posterior."
    )
    outline: list[tuple[float, ...]] | None = Field(
        description="With three objectives: the corners of that region's convex hull, in order, each as weights in the"
        " order of `weights`. Null for other numbers."
    )
    credible: float
    profile: str | None = Field(description="The name by which it is served from now on; null: it was not stored.")
