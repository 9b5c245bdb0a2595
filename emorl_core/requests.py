"""Builds validated engine requests from a caller's arguments."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from emorl_core.asked import Asked, Messages, Reader
from emorl_core.bundles.bundle import BundleSpec
from emorl_core.bundles.predictor import Prediction, Predictor
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.combine_modes import check_combine
from emorl_core.engine.intake import draw_seed
from emorl_core.engine.sweep import SweepPlan, sweep_vectors
from emorl_core.errors import InvalidRequest, shown
from emorl_core.text.prompts import PromptEncoder
from emorl_core.text.tokenizer import Tokenizer
from emorl_core.types import MAX_TOP_LOGPROBS, Combine, Request, Sampling
from emorl_core.weights import ResolvedWeights, resolve

Weights = Mapping[str, float]


class Requests:
    """Makes the requests of one bundle: names become weight vectors, and prompts become token ids. Thread-safe."""

    def __init__(
        self,
        spec: BundleSpec,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        context: int | None = None,
        max_prompt_chars: int | None = None,
        predictors: Mapping[str, Predictor] | None = None,
    ) -> None:
        """context: the base's limit on tokens of prompt and reply together, None: no limit; max_prompt_chars: see
        `PromptEncoder`; predictors: by profile. Raises BundleError for a chat template that cannot be used."""
        self.spec = spec
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._prompts = PromptEncoder(spec, tokenizer, max_prompt_chars)
        self._reader = Reader(self._prompts, vocab_size=vocab_size, most=spec.max_source_tokens, context=context)
        self._numbers = itertools.count(1)
        self._predictors = predictors or {}
        self.learned: Mapping[str, ProfileSpec] = {}  # additional profiles; replaced as a whole, never mutated

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
    def profiles(self) -> dict[str, ProfileSpec]:
        """The bundle's profiles, then the learned ones."""
        return {**self.spec.profiles, **self.learned}

    @property
    def max_prompt_chars(self) -> int:
        """Longer prompts are refused before they are tokenised."""
        return self._prompts.max_chars

    def encode(self, prompt: str, *, field: str = "prompt") -> tuple[int, ...]:
        """Wrap a prompt in the bundle's template and tokenise it; for a bundle with `chat` it is one user message.
        Names of control tokens in the prompt stay text.

        field: what errors call the prompt. Raises PromptTooLong naming the limit.
        """
        return self._prompts.encode(self._prompts.read(prompt, field=field), field=field)

    def encode_chat(self, messages: Messages, *, field: str = "messages") -> tuple[int, ...]:
        """Put a chat through the base's chat template and tokenise it. Names of control tokens in it stay text.

        messages: `role` (system, user, assistant) and `content` (text, or a list of text parts) each; field: what
        errors call them. Raises InvalidRequest, and PromptTooLong naming the limit.
        """
        return self._prompts.encode(self._prompts.read_chat(messages, field=field), field=field)

    def encode_raw(self, text: str, *, field: str = "prompt") -> tuple[int, ...]:
        """Tokenise a raw text without any template; a control token's name in it is that token.

        Raises as `encode`.
        """
        return self._prompts.encode_raw(text, field=field)

    def _sampling(self, **fields: Any) -> Sampling:
        """As `sampling_of`, with a bias for tokens of this vocabulary."""
        settings = sampling_of(**fields)
        last = settings.logit_bias[-1][0] if settings.logit_bias else 0
        if last >= self._vocab_size:
            raise InvalidRequest(
                f"logit_bias has the token id {shown(last)}; allowed: 0 to {self._vocab_size - 1}", param="logit_bias"
            )
        return settings

    def resolve(
        self, weights: Weights | None = None, profile: str | None = None, *, normalize: bool = True
    ) -> ResolvedWeights:
        """Weights or a profile -> the vector the engine uses; see `emorl_core.weights`. Profiles that predict weights
        need a prompt and are refused here."""
        return resolve(
            self.lanes,
            weights,
            profile,
            profiles={name: each.weights for name, each in self.profiles.items()},
            default_profile=self.spec.default_profile,
            normalize=normalize,
        )

    def request(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Messages | None = None,
        weights: Weights | None = None,
        profile: str | None = None,
        normalize: bool = True,
        combine: Combine = "hidden",
        attribution: bool = False,
        top_logprobs: int = 0,
        stream: bool = True,
        request_id: str | None = None,
        field: str = "prompt",
        fit_context: bool = False,
        **sampling: Any,
    ) -> Request:
        """Build a `Request` for the engine from a prompt or `messages` (`encode_chat`). Token ids are used as the
        prompt unchanged, without the template.

        field: the prompt's name in errors; fit_context: reduce the number of new tokens to what the base's context
        leaves; sampling: fields of `Sampling`.

        Raises:
            InvalidRequest, InvalidWeights, PromptTooLong: one line that names the field, the value, what is allowed.
        """
        predict = self._predict(weights, profile, combine)
        resolved = self.resolve(weights, profile, normalize=normalize) if predict is None else predict.read
        check_combine(combine, resolved.vector, attribution=attribution)
        if not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"top_logprobs is {shown(top_logprobs)}; allowed: 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs"
            )
        settings = self._sampling(**sampling)
        asked = self._reader.read(prompt, messages, field)
        encoded = self._reader.encode(asked, [resolved.vector], combine)
        if fit_context:
            settings = self._reader.fitted(encoded, settings)
        self._reader.check_context(encoded, settings, asked[0])
        return Request(
            request_id=request_id or f"local-{next(self._numbers)}",
            prompt_ids=encoded.ids,
            weights=resolved.vector,
            sampling=settings,
            combine=combine,
            attribution=attribution,
            top_logprobs=top_logprobs,
            profile=resolved.profile,
            stream=stream,
            lane_prompts=encoded.of_lanes,
            predict=predict,
        )

    def _predict(self, weights: Weights | None, profile: str | None, combine: Combine) -> Prediction | None:
        """The predictor of a request's weights; None: they are known. Raises InvalidRequest."""
        name = self.spec.default_profile if profile is None else profile
        if weights is not None or name is None or name not in self._predictors:
            return None
        spec = self.spec.profiles[name].predictor
        assert spec is not None  # a predictor was loaded for it
        if combine == "weights":
            raise InvalidRequest(
                "combine is 'weights', which sums adapters before the prompt is read, and profile "
                f"{shown(name)} predicts weights from it; allowed with it: hidden, probs",
                param="combine",
            )
        return Prediction(name, self._predictors[name], self.lanes, tuple(spec.objectives))

    def sweep_plan(
        self,
        prompts: str | Sequence[str] | None = None,
        weights: Sequence[Weights] | None = None,
        *,
        messages: Messages | None = None,
        chats: Sequence[Messages] | None = None,
        resolution: int | None = None,
        normalize: bool = True,
        combine: Combine = "hidden",
        only: Sequence[Collection[int]] | None = None,
        max_sweep: int | None = None,
        **sampling: Any,
    ) -> SweepPlan:
        """A validated sweep, not yet started: every prompt under every weight vector.

        Args:
            prompts: one text or several; none beside `messages` and `chats`.
            messages: one chat instead, see `encode_chat`; chats: several.
            weights: the vectors; or give `resolution`, for the grid of steps 1 / resolution over all objectives.
            only: for each prompt the indices of its vectors; default: all.
            max_sweep: most completions (prompts times vectors) allowed; counted before anything is allocated.
            sampling: the fields of `Sampling`; one seed serves all, so that equal prefixes stay shared.

        Raises:
            InvalidRequest and its kinds: also when neither or both of `weights` and `resolution` are given, or nothing
            is asked for.
        """
        several = chats if prompts is None or isinstance(prompts, str) else prompts
        vectors = sweep_vectors(
            self.objectives,
            weights,
            resolution,
            lambda each: self.resolve(each, normalize=normalize),
            prompts=1 if several is None else len(several),
            most=max_sweep,
        )
        settings = self._sampling(**sampling)
        if settings.seed is None:
            settings = replace(settings, seed=draw_seed())
        asked = self._reader.read_all(prompts, messages, chats)
        return self._sweep(asked, vectors, settings, combine, only=only)

    def _sweep(
        self,
        asked: Sequence[Asked],
        vectors: Sequence[ResolvedWeights],
        settings: Sampling,
        combine: Combine,
        *,
        prefix: str | None = None,
        **options: Any,
    ) -> SweepPlan:
        """prefix: of the request ids; options: of `SweepPlan`. Raises as `sweep_plan`."""
        every = [each.vector for each in vectors]
        encoded = []
        for each in asked:
            encoded.append(self._reader.encode(each, every, combine))
            self._reader.check_context(encoded[-1], settings, each[0])
        return SweepPlan(
            [each.ids for each in encoded],
            vectors,
            settings,
            combine=combine,
            prefix=prefix or f"sweep{next(self._numbers)}",
            lane_prompts=[each.of_lanes for each in encoded],
            **options,
        )


def sampling_of(
    *,
    stop: str | Sequence[str] = (),
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
    **fields: Any,
) -> Sampling:
    """The keywords of `generate` and `sweep` -> `Sampling`; `stop` may be a single string, and token ids may be
    strings."""
    bias = []
    for token, value in (logit_bias or {}).items():
        if not str(token).isdecimal():
            raise InvalidRequest(f"logit_bias has the key {shown(token)}; allowed: token ids", param="logit_bias")
        bias.append((int(token), value))
    stops = (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else tuple(stop)
    return Sampling(stop=stops, logit_bias=tuple(sorted(bias)), **fields)
