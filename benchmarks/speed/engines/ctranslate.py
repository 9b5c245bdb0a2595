"""`ctranslate2`: the same base as one model through CTranslate2, converted from the random checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.workload import Setup, Times, Work, check_length
from emorl_core.bundles.bundle import Bundle


class CTranslate2:
    """Greedy, without scores. It returns the whole answer at once, so the first token is timed in a separate run."""

    def __init__(self, setup: Setup) -> None:
        import ctranslate2
        from tokenizers import Tokenizer

        base = Bundle.open(setup.folder).base_folder()
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        self._piece_of, self._id_of = tokenizer.id_to_token, tokenizer.token_to_id
        self._encodes = _config(base)["model_type"] == "t5"
        kind = ctranslate2.Translator if self._encodes else ctranslate2.Generator
        self._model = kind(
            str(convert(base)),
            device=setup.device,
            compute_type=setup.dtype,
            inter_threads=1,
            intra_threads=setup.threads,
        )

    def run(self, work: Work) -> Times:
        prompts = [[self._piece_of(each) for each in prompt] for prompt in work.prompts()]
        first, _ = self._timed(prompts, 1)
        total, ids = self._timed(prompts, work.new)
        return Times(first, total, work.new, (), ids)

    def facts(self) -> dict[str, object]:
        import ctranslate2

        kind = self._model.compute_type
        return {"settings": f"version {ctranslate2.__version__}, compute type {kind}, intra_threads"}

    def _timed(self, prompts: list[list[str]], new: int) -> tuple[float, tuple[tuple[int, ...], ...]]:
        start = time.perf_counter()
        made = self._translated(prompts, new) if self._encodes else self._continued(prompts, new)
        seconds = time.perf_counter() - start
        ids = tuple(tuple(map(self._id_of, pieces)) for pieces in made)
        for each in ids:
            check_length(len(each), new, "ctranslate2")
        return seconds, ids

    def _translated(self, prompts: list[list[str]], new: int) -> list[list[str]]:
        results: list[Any] = self._model.translate_batch(
            prompts, beam_size=1, max_decoding_length=new, min_decoding_length=new
        )
        return [result.hypotheses[0] for result in results]

    def _continued(self, prompts: list[list[str]], new: int) -> list[list[str]]:
        results: list[Any] = self._model.generate_batch(
            prompts, beam_size=1, max_length=new, min_length=new, include_prompt_in_result=False
        )
        return [result.sequences[0] for result in results]


def convert(base: Path) -> Path:
    """Convert a Hugging Face folder to CTranslate2's format in float32, beside it and only once."""
    import ctranslate2

    base = base.resolve()
    out = base.with_name(f"{base.name}-ctranslate2")
    if not (out / "model.bin").exists():
        ctranslate2.converters.TransformersConverter(str(base)).convert(str(out), force=True)
        config = _config(out)
        if config.get("bos_token", "") is None:  # it writes null, which it cannot read; prompts here have no such token
            (out / "config.json").write_text(json.dumps({**config, "bos_token": config["eos_token"]}))
    return out


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found
