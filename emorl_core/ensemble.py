"""The front door for Python users: load a bundle, generate, stream, sweep.

`Ensemble.load("my-bundle").generate("I can't keep up at work.", weights={"reflection": 0.7, "empathy": 0.3})`
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from emorl_core.adapters import read_peft
from emorl_core.bundle import Bundle, BundleSpec
from emorl_core.driver import Driver
from emorl_core.engine import Engine, draw_seed
from emorl_core.errors import InvalidRequest, InvalidWeights, PromptTooLong
from emorl_core.huge_pages import use_huge_pages
from emorl_core.line import LineResult
from emorl_core.models import load_model
from emorl_core.precision import pick_device, pick_dtype
from emorl_core.sweep import SweepItem, SweepPlan, SweepResult, simplex_grid
from emorl_core.tokenizer import HuggingFaceTokenizer, Tokenizer
from emorl_core.types import (
    COMBINE_MODES,
    MAX_TOP_LOGPROBS,
    Combine,
    Completion,
    Request,
    Sampling,
    TokenEvent,
)
from emorl_core.weights import ResolvedWeights, resolve

Weights = Mapping[str, float]


class Ensemble:
    """One base model and its adapters, ready to generate.

    `encode` and `request` may be called from any thread. `generate` and `stream` drive the engine themselves, one call
    at a time; a server that owns the engine's thread uses `engine` instead and never calls them.
    """

    def __init__(self, spec: BundleSpec, engine: Engine, tokenizer: Tokenizer, *, bundle: Bundle | None = None) -> None:
        self.spec = spec
        self.engine = engine
        self.tokenizer = tokenizer
        self.bundle = bundle
        self._driver = Driver(engine)
        self._numbers = itertools.count(1)

    @classmethod
    def load(
        cls,
        where: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "auto",
        slots: int = 16,
        prefill_cache_bytes: int = 256 * 2**20,
        compile: bool = False,  # noqa: A002 - the name that torch and its users have for it
        revision: str | None = None,
    ) -> Ensemble:
        """Load a bundle.

        Args:
            where: a bundle folder, or a Hugging Face hub id `owner/name`.
            device: `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`.
            dtype: `auto` (bfloat16 where the device does it well), `float32`, `bfloat16`.
            slots: sequences that run at once.
            prefill_cache_bytes: bound on remembered prompts, so that other weights skip the encoder; 0 is off.
            compile: compile the decoding step: 1.4 to 2 times as fast on a CPU (docs/performance.md), for a minute of
                loading the first time and some ten seconds later. On a CPU it needs a C++ compiler; on CUDA it records
                CUDA graphs instead.
            revision: branch, tag or commit of a hub id.

        Raises:
            BundleError, AdapterError, UnsupportedModel: one line that names the file, the key and the reason.
            InvalidRequest: a device or dtype that is not there.
        """
        target = pick_device(device)
        precision = pick_dtype(dtype, target)
        bundle = Bundle.open(where, revision=revision)
        folder = bundle.base_folder()
        model = load_model(folder, device=target, dtype=precision)
        model.attach(
            [
                read_peft(bundle.adapter_folder(name), name, expected_base=bundle.spec.base.hub)
                for name in bundle.spec.objectives
            ]
        )
        if target.type == "cpu":
            use_huge_pages()
        if compile:
            model.compile_step()
        tokenizer = HuggingFaceTokenizer(folder)
        bundle.spec.check_template(len(tokenizer.encode(bundle.spec.wrap(""))))
        engine = Engine(
            model, tokenizer.decode, bundle.spec.lanes, slots=slots, prefill_cache_bytes=prefill_cache_bytes
        )
        return cls(bundle.spec, engine, tokenizer, bundle=bundle)

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
        return str(self.engine.runner.model.device)

    @property
    def dtype(self) -> str:
        return str(self.engine.runner.model.dtype).removeprefix("torch.")

    @property
    def compiled(self) -> bool:
        """Whether the decoding step is compiled (`compile` of `load`)."""
        return self.engine.runner.model.compiled

    def parameter_bytes(self) -> dict[str, int]:
        """{"base": ..., "adapters": ...}: bytes of parameters held."""
        return self.engine.runner.model.parameter_bytes()

    # -- requests ------------------------------------------------------------------------------------------------

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Wrap a prompt in the bundle's template and tokenise it. Raises PromptTooLong naming the limit."""
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest("prompt is empty; allowed: text with at least one character", param="prompt")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("prompt holds half a surrogate pair; allowed: Unicode text", param="prompt") from None
        ids = tuple(self.tokenizer.encode(self.spec.wrap(prompt)))
        if len(ids) > self.spec.max_source_tokens:
            raise PromptTooLong(
                f"prompt has {len(ids)} tokens with its template; allowed: up to {self.spec.max_source_tokens}"
                " (max_source_tokens of the bundle)",
                param="prompt",
            )
        return ids

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
        prompt: str,
        *,
        weights: Weights | None = None,
        profile: str | None = None,
        normalize: bool = True,
        combine: Combine = "hidden",
        attribution: bool = False,
        top_logprobs: int = 0,
        stream: bool = True,
        request_id: str | None = None,
        **sampling: Any,
    ) -> Request:
        """Everything a caller may name -> a `Request` for the engine. `sampling`: the fields of `Sampling`.

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
                f"top_logprobs is {top_logprobs}; allowed: 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs"
            )
        settings = sampling_of(**sampling)
        return Request(
            request_id=request_id or f"local-{next(self._numbers)}",
            prompt_ids=self.encode(prompt),
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
            self.request(text, weights=own, profile=profile, stream=False, **options)
            for text, own in zip(prompt, each, strict=True)
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
        **sampling: Any,
    ) -> SweepPlan:
        """What `sweep` runs, checked in full and not begun; thread-safe. Arguments and errors as `sweep`."""
        if (weights is None) == (resolution is None):
            raise InvalidRequest("give exactly one of weights and resolution", param="weights")
        if weights is None:
            weights = simplex_grid(self.objectives, resolution or 0)
        if isinstance(weights, Mapping):
            raise InvalidRequest("weights is one mapping; allowed: a list of them", param="weights")
        vectors = []
        for i, each in enumerate(weights):
            try:
                vectors.append(self.resolve(each, normalize=normalize))
            except InvalidWeights as error:
                raise InvalidWeights(f"vector {i}: {error.message}", param=f"weights.{i}") from None
        settings = sampling_of(**sampling)
        if settings.seed is None:
            settings = replace(settings, seed=draw_seed())
        texts = [prompts] if isinstance(prompts, str) else prompts
        prefix = f"sweep{next(self._numbers)}"
        return SweepPlan(
            [self.encode(text) for text in texts], vectors, settings, combine=combine, only=only, prefix=prefix
        )

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
    ) -> LineResult:
        """All greedy texts on the line (1 - t) from + t to, 0 <= t <= 1, with the exact values of t where they change.

        Intervals narrower than `min_width` are not divided further. Raises as `generate`.
        """
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": min_new_tokens,
            "stop": stop,
            "seed": 0,
        }
        if not min_width > 0.0:
            raise InvalidRequest(f"min_width is {min_width}; allowed: a number above 0", param="min_width")
        start, end = (
            self.request(prompt, weights=each, normalize=normalize, **options) for each in (from_weights, to_weights)
        )
        return self._driver.line(self.tokenizer.decode, start, end, min_width=min_width)

    def warm_up(self) -> None:
        """One token through all lanes at once: proves that the model, its adapters and the head really work.

        Raises EngineError when they do not.
        """
        ids = tuple(self.tokenizer.encode(self.spec.wrap("Hello.")))[: self.spec.max_source_tokens]
        even = tuple(1.0 / len(self.lanes) for _ in self.lanes)
        request = Request(f"warm-up-{next(self._numbers)}", ids, even, Sampling(max_new_tokens=1), stream=False)
        self._driver.finish([request])


def sampling_of(*, stop: str | Sequence[str] = (), **fields: Any) -> Sampling:
    """The keywords of `generate` and `sweep` -> `Sampling`; one stop string may stand alone."""
    return Sampling(stop=(stop,) if isinstance(stop, str) else tuple(stop), **fields)
