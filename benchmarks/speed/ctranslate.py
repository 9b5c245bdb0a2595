"""`ctranslate2`: the same base as one model through CTranslate2, converted from the random checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.speed.workload import Setup, Times, Work, check_length
from emorl_core.bundles.bundle import Bundle


class CTranslate2:
    """Greedy, no scores. Its answer comes at the end, so the first token is timed by a run of its own."""

    def __init__(self, setup: Setup) -> None:
        import ctranslate2
        from tokenizers import Tokenizer

        base = Bundle.open(setup.folder).base_folder()
        self._piece_of = Tokenizer.from_file(str(base / "tokenizer.json")).id_to_token
        self._id_of = Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id
        self._translator = ctranslate2.Translator(
            str(convert(base)),
            device=setup.device,
            compute_type=setup.dtype,
            inter_threads=1,
            intra_threads=setup.threads,
        )

    def run(self, work: Work) -> Times:
        prompts = [[self._piece_of(each) for each in prompt] for prompt in work.prompts()]
        first, _ = self._translate(prompts, 1)
        total, ids = self._translate(prompts, work.new)
        return Times(first, total, work.new, (), ids)

    def facts(self) -> dict[str, object]:
        import ctranslate2

        kind = self._translator.compute_type
        return {"settings": f"version {ctranslate2.__version__}, compute type {kind}, intra_threads"}

    def _translate(self, prompts: list[list[str]], new: int) -> tuple[float, tuple[tuple[int, ...], ...]]:
        start = time.perf_counter()
        results: list[Any] = self._translator.translate_batch(
            prompts, beam_size=1, max_decoding_length=new, min_decoding_length=new
        )
        seconds = time.perf_counter() - start
        ids = tuple(tuple(self._id_of(piece) for piece in result.hypotheses[0]) for result in results)
        for each in ids:
            check_length(len(each), new, "ctranslate2")
        return seconds, ids


def convert(base: Path) -> Path:
    """A Hugging Face T5 folder -> CTranslate2's format beside it, in float32, made once."""
    import ctranslate2

    base = base.resolve()
    out = base.with_name(f"{base.name}-ctranslate2")
    if not (out / "model.bin").exists():
        ctranslate2.converters.TransformersConverter(str(base)).convert(str(out), force=True)
    return out
