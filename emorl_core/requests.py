"""What a caller may name -> requests of the engine, checked in full."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from emorl_core.bundle import BundleSpec
from emorl_core.combine_modes import check_combine
from emorl_core.engine.intake import draw_seed
from emorl_core.engine.segments import SegmentsRequest
from emorl_core.engine.sweep import SweepPlan, sweep_vectors
from emorl_core.errors import InvalidRequest, InvalidWeights, PromptTooLong, shown
from emorl_core.text.chat import Message
from emorl_core.text.prompts import Encoded, PromptEncoder, Said
from emorl_core.text.tokenizer import Tokenizer
from emorl_core.types import MAX_TOP_LOGPROBS, Combine, Request, Sampling, check_width
from emorl_core.weights import ResolvedWeights, resolve

Weights = Mapping[str, float]
Messages = Sequence[Message | Mapping[str, Any]]


class Requests:
    """Makes the requests of one bundle: names become vectors, prompts token ids. Safe to call from several threads."""

    def __init__(
        self,
        spec: BundleSpec,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        context: int | None = None,
        max_prompt_chars: int | None = None,
    ) -> None:
        """context: tokens of prompt and reply together that the base takes, None: any; max_prompt_chars: see
        `PromptEncoder`. Raises BundleError for a chat template that cannot be used."""
        self.spec = spec
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context = context
        self._prompts = PromptEncoder(spec, tokenizer, max_prompt_chars)
        self._numbers = itertools.count(1)

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
        """Tokenise a text that stands for itself, without any template; a control token's name in it is that token.

        Raises as `encode`.
        """
        return self._prompts.encode_raw(text, field=field)

    def _asked(
        self, prompt: str | Sequence[int] | None, messages: Messages | None, field: str
    ) -> tuple[str, Said | Sequence[int]]:
        """Exactly one of the two, read, and the field that it is in."""
        if (prompt is None) == (messages is None):
            raise InvalidRequest("give exactly one of prompt and messages", param=field)
        if messages is not None:
            return "messages", self._prompts.read_chat(messages)
        assert prompt is not None  # one of the two is there
        return field, self._prompts.read(prompt, field=field) if isinstance(prompt, str) else prompt

    def _encoded(
        self, asked: Said | Sequence[int], vectors: Iterable[Sequence[float]], combine: Combine, field: str
    ) -> Encoded:
        """As the lanes with weight in any of the vectors read it."""
        lanes = {i for vector in vectors for i, weight in enumerate(vector) if weight}
        own = self._prompts.prompted(lanes)
        if own and combine == "weights":
            raise InvalidRequest(
                f"combine is 'weights', which sums adapters under one prompt, and objective {own[0]!r} has a prompt of"
                " its own; allowed with it: hidden, probs",
                param="combine",
            )
        if isinstance(asked, str) or (asked and isinstance(asked[0], Message)):
            said = cast("Said", asked)
            return Encoded(
                self._prompts.encode(said, field=field), self._prompts.lane_prompts(said, lanes, field=field)
            )
        if own:
            raise InvalidRequest(
                f"{field} is read as it is, and objective {own[0]!r} has a prompt of its own, which would be left out;"
                " allowed: text in the bundle's template, or no weight for that objective",
                param=field,
            )
        return Encoded(self._checked_ids(cast("Sequence[int]", asked), field))

    def _fitted(self, encoded: Encoded, sampling: Sampling) -> Sampling:
        """With as many new tokens as the context leaves, if it leaves any."""
        room = sampling.max_new_tokens if self._context is None else self._context - encoded.longest
        return replace(sampling, max_new_tokens=room) if 0 < room < sampling.max_new_tokens else sampling

    def _check_context(self, encoded: Encoded, sampling: Sampling, field: str) -> None:
        context, tokens = self._context, encoded.longest
        if context is not None and tokens + sampling.max_new_tokens > context:
            raise PromptTooLong(
                f"{field} has {tokens} tokens and max_new_tokens is {shown(sampling.max_new_tokens)}; allowed: up to"
                f" {context} together (the context of the base model)",
                param=field,
            )

    def _checked_ids(self, ids: Sequence[int], field: str) -> tuple[int, ...]:
        size, most = self._vocab_size, self.spec.max_source_tokens
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
        """Everything a caller may name -> a `Request` for the engine, of a prompt or of `messages` (`encode_chat`). A
        prompt of token ids is taken as it is, without the template.

        field: what errors call the prompt; fit_context: ask for fewer new tokens where the base's context leaves no
        more; sampling: the fields of `Sampling`.

        Raises:
            InvalidRequest, InvalidWeights, PromptTooLong: one line that names the field, the value, what is allowed.
        """
        resolved = self.resolve(weights, profile, normalize=normalize)
        check_combine(combine, resolved.vector, attribution=attribution)
        if not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"top_logprobs is {shown(top_logprobs)}; allowed: 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs"
            )
        settings = sampling_of(**sampling)
        field, asked = self._asked(prompt, messages, field)
        encoded = self._encoded(asked, [resolved.vector], combine, field)
        if fit_context:
            settings = self._fitted(encoded, settings)
        self._check_context(encoded, settings, field)
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
        )

    def sweep_plan(
        self,
        prompts: str | Sequence[str] | None = None,
        weights: Sequence[Weights] | None = None,
        *,
        messages: Messages | None = None,
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
            prompts=1 if prompts is None or isinstance(prompts, str) else len(prompts),
            most=max_sweep,
        )
        settings = sampling_of(**sampling)
        if settings.seed is None:
            settings = replace(settings, seed=draw_seed())
        if (prompts is None) == (messages is None):
            raise InvalidRequest("give exactly one of prompts and messages", param="prompts")
        if prompts is None or isinstance(prompts, str):
            asked = [self._asked(prompts, messages, "prompt")]
        else:
            asked = [(f"prompts.{i}", said) for i, said in enumerate(self._prompts.read_all(prompts))]
        every = [each.vector for each in vectors]
        encoded = [self._encoded(said, every, combine, field) for field, said in asked]
        for (field, _), each in zip(asked, encoded, strict=True):
            self._check_context(each, settings, field)
        return SweepPlan(
            [each.ids for each in encoded],
            vectors,
            settings,
            combine=combine,
            only=only,
            prefix=f"sweep{next(self._numbers)}",
            lane_prompts=[each.of_lanes for each in encoded],
        )

    def segments_request(
        self,
        prompt: str | None,
        from_weights: Weights,
        to_weights: Weights,
        *,
        messages: Messages | None = None,
        names: tuple[str, str] = ("from_weights", "to_weights"),
        min_width: float = 1e-7,
        normalize: bool = True,
        request_id: str | None = None,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
        **limits: Any,
    ) -> SegmentsRequest:
        """What `sweep_line` runs, checked in full and not begun.

        names: what errors call the two vectors; limits: further fields of `SegmentsRequest`. Raises as `request`.
        """
        check_width(min_width)
        start, end = (
            self._named_end(name, weights, normalize)
            for name, weights in zip(names, (from_weights, to_weights), strict=True)
        )
        settings = sampling_of(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, stop=stop, seed=0)
        field, asked = self._asked(prompt, messages, "prompt")
        encoded = self._encoded(asked, [start, end], "hidden", field)
        self._check_context(encoded, settings, field)
        return SegmentsRequest(
            request_id or f"local-{next(self._numbers)}",
            encoded.ids,
            start,
            settings,
            stream=False,
            lane_prompts=encoded.of_lanes,
            to=end,
            min_width=min_width,
            **limits,
        )

    def _named_end(self, name: str, weights: Weights, normalize: bool) -> tuple[float, ...]:
        """The vector of one end; its errors say which end."""
        try:
            return self.resolve(weights, normalize=normalize).vector
        except InvalidWeights as error:
            param = (error.param or "weights").replace("weights", name, 1)
            raise InvalidWeights(f"{name}: {error.message}", param=param) from None


def sampling_of(*, stop: str | Sequence[str] = (), **fields: Any) -> Sampling:
    """The keywords of `generate` and `sweep` -> `Sampling`; one stop string may stand alone."""
    return Sampling(stop=(stop,) if isinstance(stop, str) else tuple(stop), **fields)
