"""The HTTP models of the routes about the server: what is loaded, and its health."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from emorl_core.bundles.bundle import ChatSpec, PromptSpec
from emorl_core.choices.record import REASONS
from server.api.fields import example
from server.serving.receipt import Identity


class Objective(BaseModel):
    """`adapter` is false for `base`, the bare model, which can be weighted like any other, and for an objective that is
    a prompt alone. `prompt`: what its lane is told."""

    name: str
    description: str
    adapter: bool
    prompt: PromptSpec | None


class Objectives(BaseModel):
    model_config = example(
        objectives=[
            {"name": "base", "description": "the model without any adapter", "adapter": False, "prompt": None},
            {"name": "reflection", "description": "gives the client's meaning back", "adapter": True, "prompt": None},
        ]
    )

    objectives: list[Objective]


class Profile(BaseModel):
    """`weights` as a request with this profile resolves them, empty where they are predicted for each prompt; `origin`
    as in the bundle."""

    name: str
    kind: Literal["fixed", "predicted"]
    weights: dict[str, float]
    origin: dict[str, Any]


class Profiles(BaseModel):
    model_config = example(
        default="balanced",
        profiles=[
            {
                "name": "balanced",
                "kind": "fixed",
                "weights": {"reflection": 0.6, "empathy": 0.4},
                "origin": {"by": "a search"},
            }
        ],
    )

    default: str | None
    profiles: list[Profile]


class Limits(BaseModel):
    max_source_tokens: int
    max_prompt_chars: int
    max_new_tokens: int
    max_body_bytes: int
    max_choices: int
    max_sweep: int
    slots: int
    max_queue: int


class ChoicesInfo(BaseModel):
    """What this server stores about people's choices."""

    kept: bool  # whether POST /choices writes anything
    profiles: bool  # whether POST /profiles/learn may store what it learned
    reasons: list[str]  # that a choice may give


class Info(BaseModel):
    model_config = example(
        model="counselor-demo",
        version="0.1.0",
        format="emorl-bundle/1",
        architecture="t5",
        prompt_template="{prompt} [SEP] ",
        chat=None,
        objectives=["base", "reflection", "empathy"],
        profiles=["balanced"],
        default_profile="balanced",
        device="cpu",
        dtype="float32",
        compiled=False,
        threads=2,
        parameter_bytes={"base": 891600000, "adapters": 38900000},
        identity={
            "bundle": "counselor-demo",
            "source": None,
            "prompt_template": "{prompt} [SEP] ",
            "bundle_yaml": "9f2c…",
            "base": "41d0…",
            "adapters": {"reflection": "c7aa…", "empathy": "05be…"},
        },
        limits={
            "max_source_tokens": 128,
            "max_prompt_chars": 4096,
            "max_new_tokens": 1024,
            "max_body_bytes": 262144,
            "max_choices": 8,
            "max_sweep": 4096,
            "slots": 16,
            "max_queue": 64,
        },
        choices={"kept": True, "profiles": False, "reasons": list(REASONS)},
    )

    model: str
    version: str
    format: str
    architecture: str
    prompt_template: str
    chat: ChatSpec | None
    objectives: list[str]
    profiles: list[str]
    default_profile: str | None
    device: str
    dtype: str
    compiled: bool  # the decoding step of requests that begin now
    threads: int
    parameter_bytes: dict[str, int]
    identity: Identity
    limits: Limits
    choices: ChoicesInfo


class Health(BaseModel):
    model_config = example(status="ok")

    status: Literal["ok"]
