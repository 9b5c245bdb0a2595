"""`fake_ensemble`: the whole engine over `models/fake.py`, for tests and for trying the server without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emorl_core.adapters.adapter import Adapter
from emorl_core.bundles.bundle import PROMPT, BaseRef, BundleSpec, ChatSpec, ObjectiveSpec, PromptSpec
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.engine.engine import Engine
from emorl_core.ensemble import Ensemble
from emorl_core.models.fake import FakeModel, FakeTokenizer
from emorl_core.types import PromptLookup


def fake_ensemble(
    objectives: Sequence[str] = ("reflection", "empathy", "fluency"),
    *,
    encoder: bool = True,
    chat: ChatSpec | None = None,
    prompts: Mapping[str, PromptSpec] | None = None,
    slots: int = 8,
    mean_length: int = 12,
    step_delay_s: float = 0.0,
    max_source_tokens: int = 128,
    prefill_cache_bytes: int = 2**20,
    prefill_tokens: int | None = None,
    kv_cache_bytes: int | None = None,
    prompt_lookup: PromptLookup = "off",
) -> Ensemble:
    """An `Ensemble` over `FakeModel`, with the profiles `balanced` (the default) and one per objective.

    objectives: those with an adapter; prompts: by objective, including objectives without an adapter.

    encoder: whether it is an encoder-decoder or a decoder-only model. The model, with its fault hooks, is
    `ensemble.engine.model`. chat: of the bundle, which then has no prompt template.
    """
    model = FakeModel(encoder=encoder, mean_length=mean_length, step_delay_s=step_delay_s)
    tokenizer = FakeTokenizer()
    model.attach([Adapter(name, {}) for name in objectives])
    prompts = prompts or {}
    names = tuple(dict.fromkeys((*objectives, *prompts)))
    only = {name: ProfileSpec(weights={name: 1.0}) for name in names}
    spec = BundleSpec(
        name="fake",
        base=BaseRef(path="base"),
        prompt_template="{prompt} [SEP] " if chat is None else PROMPT,
        chat=chat,
        max_source_tokens=max_source_tokens,
        objectives={
            name: ObjectiveSpec(
                adapter=f"adapters/{name}" if name in objectives else None,
                prompt=prompts.get(name),
                description=f"fake {name}",
            )
            for name in names
        },
        profiles={"balanced": ProfileSpec(weights=dict.fromkeys(names, 1.0)), **only},
        default_profile="balanced",
    )
    engine = Engine(
        model,
        tokenizer.decode,
        spec.lanes,
        slots=slots,
        prefill_cache_bytes=prefill_cache_bytes,
        prefill_tokens=prefill_tokens,
        kv_cache_bytes=kv_cache_bytes,
        prompt_lookup=prompt_lookup,
    )
    return Ensemble(spec, engine, tokenizer)
