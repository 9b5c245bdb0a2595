"""`llama.cpp`: the same base as one model through its own server, from the wheel `xllamacpp`."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.speed.gguf_base import write_gguf
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
        self._server = xllamacpp.Server(parameters)

    def run(self, work: Work) -> Times:
        prompts = work.prompts()
        with ThreadPoolExecutor(len(prompts)) as callers:
            start = time.perf_counter()
            answers = list(callers.map(lambda prompt: self._answer(prompt, work.new, start), prompts))
        ids = tuple(tuple(answer["tokens"]) for _, answer in answers)
        for each in ids:
            check_length(len(each), work.new, "llama.cpp")
        first = max(ended - answer["timings"]["predicted_ms"] / 1e3 for ended, answer in answers)
        return Times(first, max(ended for ended, _ in answers), work.new, (), ids)

    def facts(self) -> dict[str, object]:
        import xllamacpp

        built = " ".join(part.strip() for part in xllamacpp.get_system_info().split("|") if part.strip())
        return {"settings": f"xllamacpp {xllamacpp.__version__}, one slot a request, built with {built}"}

    def _answer(self, prompt: list[int], new: int, start: float) -> tuple[float, dict[str, Any]]:
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
            }
        )
        ended = time.perf_counter() - start
        if "__verbose" not in answer:
            raise RuntimeError(f"llama.cpp gave no answer: {json.dumps(answer)[:300]}")
        return ended, answer["__verbose"]
