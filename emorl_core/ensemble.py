"""The front door for Python users: load a bundle, generate, stream, sweep.

`Ensemble.load("my-bundle").generate("I can't keep up at work.", weights={"reflection": 0.7, "empathy": 0.3})`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, overload

import torch

from emorl_core.asked import Messages
from emorl_core.bundles.bundle import Bundle, BundleSpec
from emorl_core.bundles.predictor import Predictor
from emorl_core.bundles.snapshot import Hashes, Snapshot
from emorl_core.drafts.plan import Drafts, Wanted
from emorl_core.engine.driver import Driver
from emorl_core.engine.engine import Engine
from emorl_core.engine.regions import MapResult
from emorl_core.engine.segments import SegmentsResult
from emorl_core.engine.sweep import SweepItem, SweepResult
from emorl_core.errors import InvalidRequest, UnsupportedModel
from emorl_core.frontend import Frontend, Held
from emorl_core.lanes import huge_pages
from emorl_core.loading import Options, load_bundle
from emorl_core.machine.precision import pick_device, pick_dtype, pick_quantize
from emorl_core.machine.threads import ThreadChoice, check_threads
from emorl_core.machine.warm_up import warm_up
from emorl_core.models.compiling import Compilation
from emorl_core.models.family import LaneModel
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.requests import Weights
from emorl_core.scorers.asking import Statement, ask_rounded
from emorl_core.text.chat import last_said, read_messages
from emorl_core.text.prompts import Encoded
from emorl_core.text.tokenizer import Tokenizer
from emorl_core.types import Completion, Failure, PromptLookup, Quantize, Request, Threads, TokenEvent
from emorl_core.weights import BASE


class Ensemble(Frontend):
    """One base model and its adapters, ready to generate.

    Methods that make requests may be called from any thread. `generate` and `stream` drive the engine themselves, one
    call at a time; a server that owns the engine's thread uses `engine` instead and never calls them.
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
        quantize: Quantize = "off",
        predictors: Mapping[str, Predictor] | None = None,
    ) -> None:
        super().__init__(
            spec,
            tokenizer,
            vocab_size=engine.facts.vocab_size,
            context=engine.facts.max_positions,
            max_prompt_chars=max_prompt_chars,
            predictors=predictors,
        )
        self.engine = engine
        self.bundle = bundle
        self.hashes = hashes
        self.threads = threads or ThreadChoice([torch.get_num_threads()])
        self.scorers = {}
        self.compilation: Compilation[LaneModel] | None = None  # pending compilation of the step
        self._quantize: Quantize = quantize
        self._weighed: tuple[LaneModel, dict[str, int]] | None = None
        self._driver = Driver(engine)

    @classmethod
    def load(
        cls,
        where: str | os.PathLike[str] | Snapshot,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str = "auto",
        slots: int = 16,
        prefill_cache_bytes: int = 256 * 2**20,
        prefill_tokens: int | None = None,
        kv_cache_bytes: int | None = None,
        prompt_lookup: PromptLookup = "off",
        compile: bool | Literal["auto"] = False,  # noqa: A002 - the name that torch and its users have for it
        compile_cache: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        hashed: bool = False,
        max_prompt_chars: int | None = None,
        threads: Threads = "auto",
        scorer_device: str | None = None,
        scorer_code: bool = False,
        group: ProcessGroup | None = None,
    ) -> Ensemble:
        """Load a bundle.

        Args:
            where: a bundle folder, a Hugging Face hub id `owner/name`, or an open snapshot.
            device: `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`.
            dtype: `auto` (bfloat16 where the device supports it natively), `float32`, `bfloat16`.
            quantize: storage of the base's matrices: `off`, as `dtype`; `float16`; `int8`, a quarter of float32's
                memory at a small error (docs/performance.md); `auto`, float16 where `dtype` is `auto` and resolves to
                float32 on an x86 CPU. Adapters and norms are not affected.
            slots: sequences decoded at once.
            prefill_cache_bytes: size of the prefill cache, which keeps prompts and replies so that common prefixes are
                computed once; 0 turns it off.
            prefill_tokens: prompt tokens read per step, so that a long prompt does not hold up running sequences; eight
                times as many when none is running. None: no limit, which gives the highest throughput.
            kv_cache_bytes: bound on keys and values of running sequences; others wait, or are refused if they could
                never fit. None: bounded by `slots` only.
            prompt_lookup: propose tokens copied from the prompt and verify several per step: `off`; `auto`, where that
                is faster; `on`.
            compile: compile the decoding step. On a CPU decoding is then 1.4 to 2 times as fast (docs/performance.md),
                but the first load takes minutes and needs a C++ compiler; on CUDA it records CUDA graphs. `auto`, on a
                CPU: use a step that was compiled before, else leave the work in `compilation`.
            compile_cache: folder for compiled steps; None: `.cache/emorl/compiled` in the user's home.
            revision: branch, tag or commit of a hub id.
            hashed: compute `hashes` of the loaded files, which receipts need; reads every file once more.
            max_prompt_chars: longer prompts are refused before they are tokenised; None: twice the most that could fit.
            threads: torch's threads on a CPU; `auto`: torch's default, until `warm_up` has measured the fastest number.
            scorer_device: device of the bundle's scorers, loaded into `scorers`; None: do not load them.
            scorer_code: also load scorers of kind `callable`, which are Python functions that the bundle names.
            group: processes over which the base is split; this one leads, the others follow
                (`emorl_core.models.parallel`). `where` is then a folder or a hub id.

        Raises:
            BundleError, AdapterError, UnsupportedModel: one line that names the file, the key and the reason.
            InvalidRequest: a device, dtype or quantize that is not available.
        """
        count = check_threads(threads)
        if count != "auto":
            torch.set_num_threads(count)
        target = pick_device(device)
        precision, kept = pick_dtype(dtype, target), pick_quantize(quantize, dtype, target)
        options = Options(target, precision, kept, hashed, scorer_device, scorer_code, group)
        loaded = load_bundle(where, options, revision=revision)
        bundle, model, tokenizer = loaded.bundle, loaded.model, loaded.tokenizer
        if target.type == "cpu" and sum(model.parameter_bytes().values()) >= huge_pages.WORTH_FROM:
            huge_pages.use_huge_pages()
        folder = Path.home() / ".cache/emorl/compiled" if compile_cache is None else Path(compile_cache)
        compilation: Compilation[LaneModel] | None = None
        if compile is True:
            model = model.compilation(folder, ragged=prompt_lookup != "off").make()
        elif compile and target.type == "cpu":
            with contextlib.suppress(UnsupportedModel):
                compilation = model.compilation(folder, ragged=prompt_lookup != "off")
                model = compilation.load() or model
        engine = Engine(
            model,
            tokenizer.decode,
            bundle.spec.lanes,
            slots=slots,
            prefill_cache_bytes=prefill_cache_bytes,
            prefill_tokens=prefill_tokens,
            kv_cache_bytes=kv_cache_bytes,
            prompt_lookup=prompt_lookup,
        )
        ensemble = cls(
            bundle.spec,
            engine,
            tokenizer,
            bundle=bundle,
            hashes=loaded.hashes,
            max_prompt_chars=max_prompt_chars,
            threads=ThreadChoice.of(threads, target),
            quantize=kept,
            predictors=loaded.predictors,
        )
        ensemble.scorers = loaded.scorers
        ensemble.compilation = None if model.compiled else compilation
        ensemble._prompts.check()
        return ensemble

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def held(self) -> Held:
        facts, model = self.engine.facts, self.engine.model
        if self._weighed is None or self._weighed[0] is not model:
            self._weighed = model, model.parameter_bytes()
        return Held(
            architecture=facts.architecture,
            device=str(facts.device),
            dtype=str(facts.dtype).removeprefix("torch."),
            quantize=self._quantize,
            slots=self.engine.scheduler.slots,
            vocab_size=facts.vocab_size,
            max_positions=facts.max_positions,
            compiled=model.compiled,
            threads=self.threads.count,
            parameter_bytes=self._weighed[1],
        )

    # -- generation ----------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str | None = None, weights: Weights | None = None, profile: str | None = None, **options: Any
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
        prompt: str | Sequence[str] | None = None,
        weights: Weights | Sequence[Weights] | None = None,
        profile: str | None = None,
        **options: Any,
    ) -> Completion | list[Completion]:
        """Generate for one prompt or chat, or for a list of prompts in one batch.

        Args:
            prompt: a text or a list of texts; none beside `messages`.
            weights: objective -> number; for a list of prompts one for all, or a list with one per prompt.
            profile: a profile's name instead of weights; with neither, the bundle's default profile.
            options: `messages` (a chat, see `encode_chat`), `normalize`, `combine`, `attribution`, `top_logprobs` and
                the fields of `Sampling` (`max_new_tokens`, `min_new_tokens`, `temperature`, `top_k`, `top_p`,
                `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `min_p`, `no_repeat_ngram_size`, `seed`,
                `stop`; `logit_bias` as a mapping from token id).

        Raises:
            InvalidRequest and its kinds before anything runs; EngineError when a request fails while running.
        """
        if prompt is None or isinstance(prompt, str):
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
        self, prompt: str | None = None, weights: Weights | None = None, profile: str | None = None, **options: Any
    ) -> Iterator[TokenEvent]:
        """Generate token by token; the last event has the `completion`. Same arguments and errors as `generate`.

        Leaving the loop early cancels the request. Several streams may be read in turn; they run in one batch.
        """
        request = self.request(prompt, weights=weights, profile=profile, stream=True, **options)
        return self._driver.stream(request)

    def ends(self, requests: Iterable[Request], *, at_once: int) -> Generator[Completion | Failure]:
        """Run requests from an iterator, this many at once; yields the end of each, in order of completion. Closing the
        iterator early cancels the rest."""
        return self._driver.ends(([request] for request in requests), at_once=at_once)

    def sweep(
        self,
        prompts: str | Sequence[str] | None = None,
        weights: Sequence[Weights] | None = None,
        *,
        on_item: Callable[[SweepItem], None] | None = None,
        **options: Any,
    ) -> SweepResult:
        """Every prompt under every weight vector, sharing every common prefix.

        Args:
            prompts, weights, options: see `sweep_plan`.
            on_item: called with each completion, in the order they end.

        Raises:
            InvalidRequest and its kinds before anything runs; EngineError when a completion fails; the others are then
            cancelled.
        """
        return self._driver.sweep(self.sweep_plan(prompts, weights, **options), on_item)

    def drafts(self, prompt: str | None = None, *, messages: Messages | None = None, **options: Any) -> Drafts:
        """A few good and different texts out of one sweep over a spread of weights. Each is token for token what
        `generate` returns for its weights.

        Ranked by the mean of the bundle's scorers where they are loaded (`scorer_device` of `load`), else by
        likelihood; `ranked_by` of the answer says which.

        Args: see `drafts_plan`; `count`, `candidates`, `seeds`, `diversity` and `min_distance` of `Wanted` by name.

        Raises:
            InvalidRequest and its kinds before anything runs; EngineError when a completion fails; ScorerError.
        """
        named = {field.name: options.pop(field.name) for field in fields(Wanted) if field.name in options}
        plan = self.drafts_plan(prompt, messages=messages, wanted=Wanted(**named), **options)
        for completion in self._driver.finish(plan.requests, together=True):
            plan.take(completion)
        if not self.scorers:
            return plan.choose(None)
        texts = plan.texts()
        about = [Statement(last_said(read_messages(messages or ())) if prompt is None else prompt)] * len(texts)
        columns = [
            [None] * len(texts) if scorer is None else ask_rounded(scorer, about, texts)
            for scorer in self.scorers.values()
        ]
        return plan.choose([dict(zip(self.scorers, own, strict=True)) for own in zip(*columns, strict=True)])

    def sweep_line(
        self, prompt: str | None, from_weights: Weights, to_weights: Weights, **options: Any
    ) -> SegmentsResult:
        """All greedy texts under (1 - t) from + t to, 0 <= t <= 1, with the exact values of t where they change.

        Arguments: see `segments_request`. Raises as `generate`.
        """
        return self._driver.segments(self.segments_request(prompt, from_weights, to_weights, **options))

    def sweep_map(
        self, prompt: str | None = None, corners: Sequence[Weights] | None = None, **options: Any
    ) -> MapResult:
        """All greedy texts of every mix of three weight vectors, with the exact borders between them.

        Arguments: see `map_request`. Raises as `generate`.
        """
        return self._driver.map(self.map_request(prompt, corners, **options))

    def warm_up(self) -> None:
        """Run one token through all lanes, which verifies that the model, its adapters and the head work. If `threads`
        is `auto`, then measure a few more steps, on the calling thread.

        Raises EngineError when a step fails.
        """
        most = self.spec.max_source_tokens
        read = {name: tuple(self._prompts.ids("Hello.", name)[:most]) for name in self.lanes}
        prompt = Encoded(read[BASE], tuple(read.values()))
        warm_up(self._driver, self.threads, prompt, f"warm-up-{next(self._numbers)}")
