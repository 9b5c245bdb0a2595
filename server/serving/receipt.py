"""Receipts: everything that produced one text, so that a text in a clinical record can be reproduced.

A receipt contains prompt and text, is returned to the caller, and is stored nowhere else. To store one outside the
record, set `prompt`, `text` and `token_ids` to null: their hashes stay, and a replay then asks for the prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import torch
from pydantic import Field

from emorl_core import __version__
from emorl_core.bundles.bundle import BundleSpec, ChatSpec, PromptSpec
from emorl_core.bundles.snapshot import Hashes
from emorl_core.config import Strict
from emorl_core.errors import InvalidRequest
from emorl_core.frontend import Frontend
from emorl_core.text.chat import Message, Role
from emorl_core.types import Combine, Completion, FinishReason, Quantize, Request

FORMAT: Literal["emorl-receipt/1"] = "emorl-receipt/1"
_REMOVABLE = ("prompt", "text", "token_ids")


class Said(Strict):
    """A message of a chat."""

    role: Role
    content: str


Prompt = str | list[int] | list[Said]
Sent = str | Sequence[int] | Sequence[Message]  # the same in requests' form


class Identity(Strict):
    """What was loaded. Hashes are SHA-256; a folder's is over the names and contents of its files. They are null where
    nothing was hashed, as for a model that is not from a bundle.

    `source`: the bundle's hub id, null for a folder. `bundle_yaml` also changes when nothing relevant to the text has
    changed, for example with a new profile; `prompt_template`, `chat` and the objectives' `prompts` are its relevant
    parts.
    """

    bundle: str
    source: str | None
    prompt_template: str
    bundle_yaml: str | None
    base: str | None
    adapters: dict[str, str]
    chat: ChatSpec | None = None
    prompts: dict[str, PromptSpec] = Field(default_factory=dict)

    @classmethod
    def of(cls, spec: BundleSpec, hashes: Hashes | None, source: str | None = None) -> Identity:
        return cls(
            bundle=spec.name,
            source=source,
            prompt_template=spec.prompt_template,
            bundle_yaml=None if hashes is None else hashes.bundle_yaml,
            base=None if hashes is None else hashes.base,
            adapters={} if hashes is None else hashes.adapters,
            chat=spec.chat,
            prompts=spec.prompts,
        )

    def mismatches(self, now: Identity, weights: dict[str, float]) -> list[str]:
        """Reasons why `now` cannot give the same tokens, one line each. Adapters without weight are ignored."""
        found = []
        if now.prompt_template != self.prompt_template:
            found.append("the prompt template is another one")
        if now.chat != self.chat:
            found.append("chat, in bundle.yaml, is another one")
        if now.base != self.base:
            found.append("the base model is another one")
        for name in sorted(name for name, weight in weights.items() if weight and name in self.adapters):
            if name not in now.adapters:
                found.append(f"the bundle has no objective {name} any more")
            elif now.adapters[name] != self.adapters[name]:
                found.append(f"the adapter of {name} is another one")
        for name in sorted(name for name, weight in weights.items() if weight):
            if now.prompts.get(name) != self.prompts.get(name):
                found.append(f"the prompt of {name} is another one")
        return found


class ReceiptSampling(Strict):
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    stop: list[str]
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_p: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: dict[str, float] = Field(default_factory=dict)


class Receipt(Strict):
    """`prompt`: the text without the template, or the chat or token ids where those were sent; `raw`: there was no
    template. `weights`: every lane's number as
    the engine used it, so they are given back with `normalize: false`. `sha256`: over all the rest but the three
    fields that may be set to null, two of which have hashes of their own. It detects damage, but is not a signature."""

    format: Literal["emorl-receipt/1"] = FORMAT
    id: str
    created: str
    prompt: Prompt | None
    prompt_sha256: str
    weights: dict[str, float]
    profile: str | None
    combine: Combine
    sampling: ReceiptSampling
    text: str | None
    token_ids: list[int] | None
    tokens_sha256: str
    finish_reason: FinishReason
    identity: Identity
    device: str
    dtype: str
    compiled: bool
    versions: dict[str, str]
    sha256: str
    raw: bool = False
    quantize: Quantize = "off"

    def damage(self) -> list[str]:
        """Inconsistencies within this receipt, one line each."""
        found = []
        if self.sha256 != _seal(self):
            found.append("a field of the receipt was changed after it was written (sha256 does not fit)")
        if self.prompt is not None and hash_of(self.prompt) != self.prompt_sha256:
            found.append("the prompt of the receipt was changed after it was written (prompt_sha256 does not fit)")
        if self.token_ids is not None and hash_of(self.token_ids) != self.tokens_sha256:
            found.append("the token ids of the receipt were changed after it was written (tokens_sha256 does not fit)")
        return found


def hash_of(content: Prompt) -> str:
    """SHA-256 of a text's UTF-8, or of token ids or messages as JSON without spaces."""
    if isinstance(content, str):
        text = content
    else:
        plain = [each.model_dump() if isinstance(each, Said) else each for each in content]
        text = json.dumps(plain, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _seal(receipt: Receipt) -> str:
    """Newer fields have a default and are omitted when they have it, so that the hashes of older receipts stay
    valid."""
    fields = receipt.model_dump(mode="json", exclude_defaults=True, exclude={*_REMOVABLE, "sha256"})
    kept = {**fields, "format": receipt.format}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_receipt(
    ensemble: Frontend,
    identity: Identity,
    prompt: Sent,
    request: Request,
    completion: Completion,
    *,
    raw: bool = False,
) -> Receipt:
    """raw: the prompt is a text without a template (`Frontend.encode_raw`)."""
    sent = _as_kept(prompt)
    tokens = list(completion.token_ids)
    sampling = {
        **dataclasses.asdict(request.sampling),
        "seed": completion.seed,
        "stop": list(request.sampling.stop),
        "logit_bias": {str(token): bias for token, bias in request.sampling.logit_bias},
    }
    unsealed = Receipt(
        id=completion.request_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        prompt=sent,
        prompt_sha256=hash_of(sent),
        weights={name: completion.weights.get(name, 0.0) for name in ensemble.lanes},
        profile=completion.profile,
        combine=request.combine,
        sampling=ReceiptSampling(**sampling),
        text=completion.text,
        token_ids=tokens,
        tokens_sha256=hash_of(tokens),
        finish_reason=completion.finish_reason,
        identity=identity,
        device=ensemble.device,
        dtype=ensemble.dtype,
        compiled=completion.compiled,
        versions=versions(ensemble.device),
        sha256="",
        raw=raw,
        quantize=ensemble.quantize,
    )
    return unsealed.model_copy(update={"sha256": _seal(unsealed)})


def _as_kept(prompt: Sent) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    messages = [Said(role=each.role, content=each.text) for each in prompt if isinstance(each, Message)]
    return messages or [each for each in prompt if isinstance(each, int)]


def replay_request(ensemble: Frontend, receipt: Receipt, prompt: Prompt) -> Request:
    """The engine request that reproduces the receipt's tokens from its prompt.

    Raises:
        InvalidRequest: the receipt has objectives that this bundle lacks, or a number is out of range.
    """
    weights = {name: weight for name, weight in receipt.weights.items() if weight}
    missing = set(weights) - set(ensemble.lanes)
    if missing:
        raise InvalidRequest(
            f"the receipt has objectives that this bundle lacks: {', '.join(sorted(missing))}", param="weights"
        )
    return ensemble.request(
        **_as_asked(ensemble, prompt, raw=receipt.raw),
        weights=weights,
        normalize=False,
        combine=receipt.combine,
        stream=False,
        **receipt.sampling.model_dump(),
    )


def _as_asked(ensemble: Frontend, prompt: Prompt, *, raw: bool) -> dict[str, Any]:
    """A stored prompt in the form that `Frontend.request` takes."""
    if isinstance(prompt, str):
        return {"prompt": ensemble.encode_raw(prompt) if raw else prompt}
    messages = [Message(each.role, each.content) for each in prompt if isinstance(each, Said)]
    return {"messages": messages} if messages else {"prompt": prompt}


def surroundings(ensemble: Frontend, receipt: Receipt) -> list[str]:
    """Other differences since the receipt was written, one line each, which may change rounding."""
    here = {"device": ensemble.device, "dtype": ensemble.dtype, **versions(ensemble.device)}
    there = {"device": receipt.device, "dtype": receipt.dtype, **receipt.versions}
    here["quantize"], there["quantize"] = ensemble.quantize, receipt.quantize
    if ensemble.compiled != receipt.compiled:
        here["compile"], there["compile"] = (str(each).lower() for each in (ensemble.compiled, receipt.compiled))
    return [f"{name} was {there.get(name)} and is {here[name]}" for name in here if here[name] != there.get(name)]


def versions(device: str) -> dict[str, str]:
    """Software versions and the processor type, whose instructions determine how sums are rounded."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    processor = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    )
    return {"emorl": __version__, "python": platform.python_version(), **packages, "processor": processor}
