"""The front door for Python users: load a bundle, generate, stream, sweep.

`Ensemble.load("my-bundle").generate("I can't keep up at work.", weights={"reflection": 0.7, "empathy": 0.3})`
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch

from emorl_core.bundle import Bundle, BundleSpec
from emorl_core.engine.driver import Driver
from emorl_core.engine.engine import Engine
from emorl_core.engine.intake import draw_seed
from emorl_core.engine.segments import SegmentsRequest, SegmentsResult
from emorl_core.engine.sweep import SweepItem, SweepPlan, SweepResult, sweep_vectors
from emorl_core.errors import InvalidRequest, InvalidWeights, PromptTooLong, shown
from emorl_core.lanes.huge_pages import use_huge_pages
from emorl_core.loading import load_bundle
from emorl_core.precision import pick_device, pick_dtype
from emorl_core.prompts import PromptEncoder
from emorl_core.snapshot import Hashes, Snapshot
from emorl_core.threads import ThreadChoice, check_threads
from emorl_core.tokenizer import Tokenizer
from emorl_core.types import (
    COMBINE_MODES,
    MAX_TOP_LOGPROBS,
    Combine,
    Completion,
    Request,
    Sampling,
    Threads,
    TokenEvent,
    check_width,
)
from emorl_core.warm_up import warm_up
from emorl_core.weights import ResolvedWeights, resolve

Weights = Mapping[str, float]


class Ensemble:
    """One base model and its adapters, ready to generate.

    `encode` and `request` may be called from any thread. `generate` and `stream` drive the engine themselves, one call
    at a time; a server that owns the engine's thread uses `engine` instead and never calls them.
    """

    def __init__(
        self,
        spec: BundleSpec,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        bundle: Bundle | None = None,
        hashes: Hashes | None = None,
        max_prompt_chars: int | None = None,
        threads: ThreadChoice | None = None,
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.tokenizer = tokenizer
        self.bundle = bundle
        self.hashes = hashes
        self.threads = threads or ThreadChoice([torch.get_num_threads()])
        self._prompts = PromptEncoder(spec, tokenizer, max_prompt_chars)
        self._driver = Driver(engine)
        self._numbers = itertools.count(1)

    @classmethod
    def load(
        cls,
        where: str | os.PathLike[str] | Snapshot,
        *,
        device: str = "auto",
        dtype: str = "auto",
        slots: int = 16,
        prefill_cache_bytes: int = 256 * 2**20,
        compile: bool = False,  # noqa: A002 - the name that torch and its users have for it
        revision: str | None = None,
        hashed: bool = False,
        max_prompt_chars: int | None = None,
        threads: Threads = "auto",
    ) -> Ensemble:
        """Load a bundle.

        Args:
            where: a bundle folder, a Hugging Face hub id `owner/name`, or a bundle that is held open.
            device: `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`.
            dtype: `auto` (bfloat16 where the device does it well), `float32`, `bfloat16`.
            slots: sequences that run at once.
            prefill_cache_bytes: bound on remembered prompts, so that other weights skip the encoder; 0 is off.
            compile: compile the decoding step: 1.4 to 2 times as fast on a CPU (docs/performance.md), for a minute of
                loading the first time and some ten seconds later. On a CPU it needs a C++ compiler; on CUDA it records
                CUDA graphs instead.
            revision: branch, tag or commit of a hub id.
            hashed: put hashes of what was loaded into `hashes`, as receipts need them; reads every file once more.
            max_prompt_chars: longer prompts are refused before they are tokenised; None: twice what the bundle's
                `max_source_tokens` can hold if each is the longest token of the vocabulary.
            threads: of torch on a CPU; `auto`: as torch has it, until `warm_up` has chosen the fastest by measuring.

        Raises:
            BundleError, AdapterError, UnsupportedModel: one line that names the file, the key and the reason.
            InvalidRequest: a device or dtype that is not there.
        """
        count = check_threads(threads)
        if count != "auto":
            torch.set_num_threads(count)
        target = pick_device(device)
        precision = pick_dtype(dtype, target)
        loaded = load_bundle(where, device=target, dtype=precision, revision=revision, hashed=hashed)
        bundle, model, tokenizer = loaded.bundle, loaded.model, loaded.tokenizer
        if target.type == "cpu":
            use_huge_pages()
        if compile:
            model.compile_step()
        bundle.spec.check_template(len(tokenizer.encode(bundle.spec.wrap(""))))
        engine = Engine(
            model, tokenizer.decode, bundle.spec.lanes, slots=slots, prefill_cache_bytes=prefill_cache_bytes
        )
        return cls(
            bundle.spec,
            engine,
            tokenizer,
            bundle=bundle,
            hashes=loaded.hashes,
            max_prompt_chars=max_prompt_chars,
            threads=ThreadChoice.of(threads, target),
        )

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def lanes(self) -> tuple[str, ...]:
        """`base`, then the objectives."""
        return self.spec.lanes

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.spec.objectives)

    @property
    def device(self) -> str:
        return str(self.engine.facts.device)

    @property
    def dtype(self) -> str:
        return str(self.engine.facts.dtype).removeprefix("torch.")

    @property
    def compiled(self) -> bool:
        """Whether the decoding step is compiled (`compile` of `load`)."""
        return self.engine.model.compiled

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}: bytes of parameters held."""
        return self.engine.model.parameter_bytes()

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def max_prompt_chars(self) -> int:
        """Longer prompts are refused before they are tokenised."""
        return self._prompts.max_chars

    def encode(self, prompt: str, *, field: str = "prompt") -> tuple[int, ...]:
        """Wrap a prompt in the bundle's template and tokenise it. Names of control tokens in the prompt stay text.

        field: what errors call the prompt. Raises PromptTooLong naming the limit.
        """
        return self._prompts.encode(prompt, field=field)

    def _checked_ids(self, ids: Sequence[int], field: str) -> tuple[int, ...]:
        size, most = self.engine.facts.vocab_size, self.spec.max_source_tokens
        for token in ids:
            if not 0 <= token < size:
                raise InvalidRequest(f"{field} has the token id {token}; allowed: 0 to {size - 1}", param=field)
        if not 0 < len(ids) <= most:
            raise PromptTooLong(
                f"{field} has {len(ids)} tokens; allowed: 1 to {most} (max_source_tokens of the bundle)", param=field
            )
        return tuple(ids)

    def resolve(
        self, weights: Weights | None = None, profile: str | None = None, *, normalize: bool = True
    ) -> ResolvedWeights:
        """Weights or a profile -> the vector the engine uses; see `emorl_core.weights`."""
        return resolve(
            self.lanes,
            weights,
            profile,
            profiles=self.spec.profile_weights(),
            default_profile=self.spec.default_profile,
            normalize=normalize,
        )

    def request(
        self,
        prompt: str | Sequence[int],
        *,
        weights: Weights | None = None,
        profile: str | None = None,
        normalize: bool = True,
        combine: Combine = "hidden",
        attribution: bool = False,
        top_logprobs: int = 0,
        stream: bool = True,
        request_id: str | None = None,
        field: str = "prompt",
        **sampling: Any,
    ) -> Request:
        """Everything a caller may name -> a `Request` for the engine. A prompt of token ids is taken as it is, without
        the template.

        field: what errors call the prompt; sampling: the fields of `Sampling`.

        Raises:
            InvalidRequest, InvalidWeights, PromptTooLong: one line that names the field, the value, what is allowed.
        """
        resolved = self.resolve(weights, profile, normalize=normalize)
        if combine not in COMBINE_MODES:
            raise InvalidRequest(f"combine is {combine!r}; allowed: {', '.join(COMBINE_MODES)}", param="combine")
        if combine == "probs" and min(resolved.vector) < 0:
            raise InvalidWeights(
                "weights: negative ones cannot mix probabilities; use combine: hidden", param="weights"
            )
        if combine == "probs" and attribution:
            raise InvalidRequest(
                "attribution splits a mix of hidden states; it is not defined with combine: probs", param="attribution"
            )
        if not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"top_logprobs is {shown(top_logprobs)}; allowed: 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs"
            )
        settings = sampling_of(**sampling)
        return Request(
            request_id=request_id or f"local-{next(self._numbers)}",
            prompt_ids=self.encode(prompt, field=field)
            if isinstance(prompt, str)
            else self._checked_ids(prompt, field),
            weights=resolved.vector,
            sampling=settings,
            combine=combine,
            attribution=attribution,
            top_logprobs=top_logprobs,
            profile=resolved.profile,
            stream=stream,
        )

    # -- generation ----------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str, weights: Weights | None = None, profile: str | None = None, **options: Any
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        weights: Weights | Sequence[Weights] | None = None,
        profile: str | None = None,
        **options: Any,
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        weights: Weights | Sequence[Weights] | None = None,
        profile: str | None = None,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Generate for one prompt, or for a list of prompts in one batch.

        Args:
            prompt: a text or a list of texts.
            weights: objective -> number; for a list of prompts one for all, or a list with one per prompt.
            profile: a profile's name instead of weights; with neither, the bundle's default profile.
            options: `normalize`, `combine`, `attribution`, `top_logprobs` and the fields of `Sampling`
                (`max_new_tokens`, `min_new_tokens`, `temperature`, `top_k`, `top_p`, `repetition_penalty`, `seed`,
                `stop`).

        Raises:
            InvalidRequest and its kinds before anything runs; EngineError when a request fails while running.
        """
        if isinstance(prompt, str):
            if weights is not None and not isinstance(weights, Mapping):
                raise InvalidRequest("weights is a list; allowed for one prompt: a mapping", param="weights")
            request = self.request(prompt, weights=weights, profile=profile, stream=False, **options)
            return self._driver.finish([request])[0]
        each = list(weights) if isinstance(weights, Sequence) else [weights] * len(prompt)
        if len(each) != len(prompt):
            raise InvalidRequest(
                f"weights has {len(each)} entries for {len(prompt)} prompts; allowed: one mapping, or one per prompt",
                param="weights",
            )
        requests = [
            self.request(text, weights=own, profile=profile, stream=False, field=f"prompt.{i}", **options)
            for i, (text, own) in enumerate(zip(prompt, each, strict=True))
        ]
        return self._driver.finish(requests)

    def stream(
        self, prompt: str, weights: Weights | None = None, profile: str | None = None, **options: Any
    ) -> Iterator[TokenEvent]:
        """Generate token by token; the last event carries the `completion`. Same arguments and errors as `generate`.

        Leaving the loop early cancels the request. Several streams may be read in turn; they run in one batch.
        """
        request = self.request(prompt, weights=weights, profile=profile, stream=True, **options)
        return self._driver.stream(request)

    def sweep_plan(
        self,
        prompts: str | Sequence[str],
        weights: Sequence[Weights] | None = None,
        *,
        resolution: int | None = None,
        normalize: bool = True,
        combine: Combine = "hidden",
        only: Sequence[Collection[int]] | None = None,
        max_sweep: int | None = None,
        **sampling: Any,
    ) -> SweepPlan:
        """What `sweep` runs, checked in full and not begun; thread-safe. Arguments and errors as `sweep`.

        max_sweep: most completions (prompts times vectors) that it may ask for; counted before anything is made.
        """
        vectors = sweep_vectors(
            self.objectives,
            weights,
            resolution,
            lambda each: self.resolve(each, normalize=normalize),
            prompts=1 if isinstance(prompts, str) else len(prompts),
            most=max_sweep,
        )
        settings = sampling_of(**sampling)
        if settings.seed is None:
            settings = replace(settings, seed=draw_seed())
        encoded = [self.encode(prompts)] if isinstance(prompts, str) else self._prompts.encode_all(prompts)
        prefix = f"sweep{next(self._numbers)}"
        return SweepPlan(encoded, vectors, settings, combine=combine, only=only, prefix=prefix)

    def sweep(
        self,
        prompts: str | Sequence[str],
        weights: Sequence[Weights] | None = None,
        *,
        resolution: int | None = None,
        normalize: bool = True,
        combine: Combine = "hidden",
        only: Sequence[Collection[int]] | None = None,
        on_item: Callable[[SweepItem], None] | None = None,
        **sampling: Any,
    ) -> SweepResult:
        """Every prompt under every weight vector, sharing every common prefix.

        Args:
            prompts: one text or several.
            weights: the vectors; or give `resolution`, for the grid of steps 1 / resolution over all objectives.
            only: per prompt the indices of the vectors that it is swept with; none given: all.
            on_item: called as completions come, in the order they end.
            sampling: the fields of `Sampling`; one seed serves all, so that equal prefixes stay shared.

        Raises:
            InvalidRequest and its kinds before anything runs: also when neither or both of `weights` and `resolution`
            are given, or nothing is asked for. EngineError when a completion fails; the others are then cancelled.
        """
        plan = self.sweep_plan(
            prompts, weights, resolution=resolution, normalize=normalize, combine=combine, only=only, **sampling
        )
        return self._driver.sweep(plan, on_item)

    def sweep_line(
        self,
        prompt: str,
        from_weights: Weights,
        to_weights: Weights,
        *,
        min_width: float = 1e-7,
        normalize: bool = True,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
    ) -> SegmentsResult:
        """All greedy texts under (1 - t) from + t to, 0 <= t <= 1, with the exact values of t where they change.

        Intervals narrower than `min_width` are not divided further. Raises as `generate`.
        """
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": min_new_tokens,
            "stop": stop,
            "seed": 0,
        }
        check_width(min_width)
        start, end = (
            self.request(prompt, weights=each, normalize=normalize, **options) for each in (from_weights, to_weights)
        )
        request = SegmentsRequest(
            start.request_id,
            start.prompt_ids,
            start.weights,
            start.sampling,
            stream=False,
            to=end.weights,
            min_width=min_width,
        )
        return self._driver.segments(request)

    def warm_up(self) -> None:
        """One token through all lanes at once: proves that the model, its adapters and the head really work. Then a few
        more where `threads` is to be chosen, on the thread that calls this.

        Raises EngineError when they do not work.
        """
        ids = self.tokenizer.encode_prompt("Hello.", *self.spec.around)[: self.spec.max_source_tokens]
        warm_up(self._driver, self.threads, ids, len(self.lanes), f"warm-up-{next(self._numbers)}")


def sampling_of(*, stop: str | Sequence[str] = (), **fields: Any) -> Sampling:
    """The keywords of `generate` and `sweep` -> `Sampling`; one stop string may stand alone."""
    return Sampling(stop=(stop,) if isinstance(stop, str) else tuple(stop), **fields)
