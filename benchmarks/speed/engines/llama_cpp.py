"""`llama.cpp`: the same base as one model through its own server, from the wheel `xllamacpp`."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.speed.engines.gguf_base import write_gguf, write_gguf_adapters
from benchmarks.speed.workload import Setup, Times, Work, check_length
from emorl_core.bundles.bundle import Bundle

_CONTEXT = 1024  # tokens per slot


class LlamaCpp:
    """Greedy, one slot per request, without prompt caching. It is called in this process, without HTTP.

    It returns the whole answer at once, with the time for all tokens but the first; the rest is the time to first
    token.
    """

    def __init__(self, setup: Setup) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(write_gguf(Bundle.open(setup.folder).base_folder(), setup.dtype))
        parameters.n_parallel = setup.slots
        parameters.n_ctx = _CONTEXT * setup.slots
        parameters.cpuparams.n_threads = setup.threads
        parameters.cpuparams_batch.n_threads = setup.threads
        if setup.dtype == "float32":  # by default, keys and values are float16
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cache_ram_mib = 0
        parameters.verbosity = -1
        parameters.lora_adapters = self._adapters(setup)
        self._server = xllamacpp.Server(parameters)

    def run(self, work: Work) -> Times:
        return self._run(work, [{}] * work.requests)

    def _run(self, work: Work, options: list[dict[str, Any]]) -> Times:
        """options: per request, in addition to the usual ones."""
        with ThreadPoolExecutor(work.requests) as callers:
            start = time.perf_counter()
            asked = zip(work.prompts(), options, strict=True)
            answers = list(callers.map(lambda each: self._answer(each[0], work.new, start, each[1]), asked))
        ids = tuple(tuple(answer["tokens"]) for _, answer in answers)
        for each in ids:
            check_length(len(each), work.new, "llama.cpp")
        first = max(ended - answer["timings"]["predicted_ms"] / 1e3 for ended, answer in answers)
        return Times(first, max(ended for ended, _ in answers), work.new, (), ids)

    def facts(self) -> dict[str, object]:
        import xllamacpp

        built = " ".join(part.strip() for part in xllamacpp.get_system_info().split("|") if part.strip())
        return {"settings": f"xllamacpp {xllamacpp.__version__}, one slot a request, built with {built}"}

    def _adapters(self, setup: Setup) -> list[Any]:  # noqa: ARG002 - one model has none
        return []

    def _answer(
        self, prompt: list[int], new: int, start: float, options: dict[str, Any]
    ) -> tuple[float, dict[str, Any]]:
        """(seconds until the answer, llama.cpp's own report)"""
        answer = self._server.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": new,
                "temperature": 0,
                "samplers": ["top_k"],  # without the others, which cost time and change nothing
                "top_k": 1,
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
                "verbose": True,
                **options,
            }
        )
        ended = time.perf_counter() - start
        if "__verbose" not in answer:
            raise RuntimeError(f"llama.cpp gave no answer: {json.dumps(answer)[:300]}")
        return ended, answer["__verbose"]


class LlamaCppAdapters(LlamaCpp):
    """`llama.cpp adapters`: the same with all objectives' adapters loaded and their weights in each request, which adds
    the weighted adapters up like `combine: weights`."""

    def run(self, work: Work) -> Times:
        weights = work.weights(self._count)
        return self._run(
            work, [{"lora": [{"id": i, "scale": weight} for i, weight in enumerate(row)]} for row in weights]
        )

    def _adapters(self, setup: Setup) -> list[Any]:
        import xllamacpp

        found = []
        for file in write_gguf_adapters(Bundle.open(setup.folder)):
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(file), 0.0
            found.append(adapter)
        self._count = len(found)
        return found
