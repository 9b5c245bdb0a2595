"""The performance targets, row by row, and whether the figures meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.figures import HIGHER_IS_BETTER, Figure, Results

T5, SMALL, MEDIUM = "t5-base", "smollm2-135m", "qwen2.5-0.5b"  # the shapes that targets refer to


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of two figures of one case. `least` or `most` is the target; `must` the bound for `nearly`.

    The faster setting of this engine counts, and of its rivals; if both figures are this engine's, the same setting is
    used for both."""

    name: str
    above: dict[str, Any]  # arguments of `Results.find`, in addition to the shape, the run's number format and device
    below: dict[str, Any]
    shape: str = T5
    rivals: tuple[str, ...] = ()  # other settings of the denominator's engine; the fastest one counts
    most: float | None = None
    least: float | None = None
    must: float | None = None

    @property
    def target(self) -> str:
        if self.least is not None:
            return f"≥ {self.least:g}"
        assert self.most is not None
        told = f"1/{1 / self.most:.0f}" if self.most < 0.5 else f"{self.most:g}"
        return f"≤ {told}" + (f" (must: ≤ {self.must:g})" if self.must else "")

    def verdict(self, value: float) -> str:
        if self.least is not None:
            return "met" if value >= self.least else "not met"
        assert self.most is not None
        if value <= self.most:
            return "met"
        return "within must" if self.must is not None and value <= self.must else "not met"


def _decode(engine: str) -> dict[str, Any]:
    return {"case": "decode", "engine": engine, "metric": "ms_per_token", "requests": 1}


def _sixteen(engine: str) -> dict[str, Any]:
    return {"case": "requests", "engine": engine, "metric": "tokens_per_s", "requests": 16}


def _first(engine: str, case: str = "prefill", **sizes: Any) -> dict[str, Any]:
    return {"case": case, "engine": engine, "metric": "first_token_ms", **sizes}


def _at(position: int) -> dict[str, Any]:
    return {"case": "position", "engine": "emorl", "metric": "ms_per_token", "position": position}


_OURS, _INT8, _ONE, _COMPILED = _decode("emorl"), _decode("emorl int8"), _decode("one-model"), ("one-model compiled",)
_SERVED, _ON_REPLY = _decode("emorl serve"), "emorl, adapters on the reply"
TARGETS = (
    Ratio("3 objectives, 1 request, ms per token / `one-model`", _OURS, _ONE, rivals=_COMPILED, most=1.0, must=1.15),
    Ratio("the same / `published`", _OURS, _decode("published"), most=1 / 40),
    Ratio("the same / `peft-mixed`", _OURS, _decode("peft-mixed"), most=1 / 3),
    Ratio("the same / `ctranslate2` float32, one model", _OURS, _decode("ctranslate2 float32"), most=0.8),
    Ratio("the same / `ctranslate2` int8, one model", _OURS, _decode("ctranslate2 int8"), most=1.0),
    *(
        Ratio(f"{shape}, `emorl serve` as it is / `one-model`", _SERVED, _ONE, shape, rivals=_COMPILED, most=1.0)
        for shape in (T5, SMALL)
    ),
    Ratio(
        "5 objectives / 1 objective, ms per token",
        {"case": "objectives", "engine": "emorl", "metric": "ms_per_token", "objectives": 5},
        {"case": "objectives", "engine": "emorl", "metric": "ms_per_token", "objectives": 1},
        most=1.35,
    ),
    Ratio(
        "16 requests with 16 different weights / 1 request, tokens per second",
        {"case": "requests", "engine": "emorl", "metric": "tokens_per_s", "requests": 16},
        {"case": "requests", "engine": "emorl", "metric": "tokens_per_s", "requests": 1},
        least=3.5,
    ),
    Ratio("position 512 / position 16, ms per token", _at(512), _at(16), most=1.4),
    Ratio(
        "same prompt under other weights / first time, first token, 256 source tokens",
        _first("emorl, prompt seen before", "again"),
        _first("emorl", "again"),
        most=1 / 4,
    ),
    Ratio(
        "first token, 64 source tokens / `one-model`",
        _first("emorl", source=64),
        _first("one-model", source=64),
        most=1.5,
    ),
    Ratio(
        "int8 base, 3 objectives, ms per token / `ctranslate2` int8, one model",
        _INT8,
        _decode("ctranslate2 int8"),
        most=1.0,
    ),
    Ratio(
        "16 requests, tokens per second / `ctranslate2` float32, one model",
        _sixteen("emorl"),
        _sixteen("ctranslate2 float32"),
        least=1.6,
    ),
    Ratio(
        "16 requests, int8 base, tokens per second / `ctranslate2` int8, one model",
        _sixteen("emorl int8"),
        _sixteen("ctranslate2 int8"),
        least=1.0,
    ),
    Ratio(f"{SMALL}, 3 objectives, ms per token / `one-model`", _OURS, _ONE, SMALL, rivals=_COMPILED, most=1.0),
    *(
        ratio
        for shape in (SMALL, MEDIUM)
        for ratio in (
            Ratio(
                f"{shape}, 3 objectives, ms per token / `llama.cpp` bfloat16, one model",
                _OURS,
                _decode("llama.cpp bfloat16"),
                shape,
                most=1.0,
            ),
            Ratio(
                f"{shape}, int8 base, 3 objectives, ms per token / `llama.cpp` Q8_0, one model",
                _INT8,
                _decode("llama.cpp q8_0"),
                shape,
                most=1.2,
            ),
        )
    ),
    Ratio(
        f"{SMALL}, `combine: weights` / the base alone, ms per token",
        {"case": "weights", "engine": "emorl, adapters summed", "metric": "ms_per_token"},
        {"case": "weights", "engine": "emorl, base alone", "metric": "ms_per_token"},
        SMALL,
        most=1.05,
    ),
    Ratio(
        f"{SMALL}, 16 requests, tokens per second / `llama.cpp` bfloat16, 16 slots, one model",
        _sixteen("emorl"),
        _sixteen("llama.cpp bfloat16"),
        SMALL,
        least=1.0,
    ),
    Ratio(
        f"{SMALL}, first token, 64 source tokens, adapters on the reply / `one-model`",
        _first(_ON_REPLY, source=64),
        _first("one-model", source=64),
        SMALL,
        most=1.15,
    ),
    Ratio(
        f"{SMALL}, first token, second turn / new conversation, 1,000 tokens, adapters on the reply",
        _first(f"{_ON_REPLY}, second turn", "turn"),
        _first(_ON_REPLY, "turn"),
        SMALL,
        most=1 / 8,
    ),
    Ratio(
        f"{SMALL}, the demo's replies, ms per token with copied tokens / without",
        {"case": "copied", "engine": "emorl, copied tokens", "metric": "ms_per_token"},
        {"case": "copied", "engine": "emorl, no copied tokens", "metric": "ms_per_token"},
        SMALL,
        most=0.8,
    ),
    Ratio(
        f"{MEDIUM}, int8 base / bfloat16, ms per token",
        _INT8 | {"dtype": "bfloat16"},
        _OURS | {"dtype": "bfloat16"},
        MEDIUM,
        most=0.7,
    ),
    Ratio(
        f"{MEDIUM}, int8 base / bfloat16, parameter memory of the base",
        {"case": "memory", "engine": "emorl int8", "metric": "base_mb", "dtype": "bfloat16"},
        {"case": "memory", "engine": "emorl", "metric": "base_mb", "dtype": "bfloat16"},
        MEDIUM,
        most=0.6,
    ),
)
GPU_TARGETS = (
    Ratio("3 objectives, 1 request, ms per token / `one-model`", _OURS, _ONE, rivals=_COMPILED, most=1.15),
    Ratio(
        "the same / time to read the weights once, no launch floor counted",
        _OURS,
        {"case": "decode", "engine": "emorl", "metric": "limit_ms"},
        most=3.0,
    ),
)
MEMORY_NAME, MEMORY_MOST = "parameter memory, 3 objectives / base, rank 8", 1.05


def judge(results: Results, dtype: str, device: str = "cpu") -> list[dict[str, Any]]:
    """One JSON-ready row per target; `value` is None if a part of it was not measured. `values`: the ratio in each
    round, whose engines ran one after the other, so that slow periods of the machine cancel out."""
    rows = []
    for ratio in TARGETS if device == "cpu" else GPU_TARGETS:
        of = {"shape": ratio.shape, "dtype": dtype, "device": device}
        ours, beside = _settings(ratio.above["engine"]), _settings(ratio.below["engine"])
        above = _fastest([results.find(**{**of, **ratio.above, "engine": engine}) for engine in ours])
        rivals = (*beside, *ratio.rivals)
        if above is not None and len(ours) == len(beside) > 1:
            rivals = (beside[ours.index(above.engine)],)
        below = _fastest([results.find(**{**of, **ratio.below, "engine": engine}) for engine in rivals])
        usual = (ratio.above["engine"], ratio.below["engine"])
        unusual = [each.engine for each in (above, below) if each and each.engine not in usual]
        name = ratio.name + (f" ({' / '.join(dict.fromkeys(unusual))})" if unusual else "")
        row: dict[str, Any] = {"name": name, "target": ratio.target, "value": None, "verdict": "not measured"}
        if above is not None and below is not None:
            value = above.median / below.median
            each = [a / b for a, b in zip(above.values, below.values, strict=False)]
            row |= {"value": value, "min": min(each), "max": max(each), "verdict": ratio.verdict(value)}
            row |= {"above": above.spread(), "below": below.spread(), "rounds": len(each)}
        rows.append(row)
    rows.append(_memory(results, dtype, device))
    return rows


def _settings(engine: str) -> tuple[str, ...]:
    """The engine names that count as this engine in a target: with its default weight format, compiled or not."""
    name, comma, what = engine.partition(",")
    kept = {"emorl": ("emorl", "emorl float16"), "emorl int8": ("emorl int8",)}.get(name)
    if kept is None:
        return (engine,)
    return tuple(f"{each}{compiled}{comma}{what}" for each in kept for compiled in ("", " compiled"))


def _fastest(figures: Sequence[Figure | None]) -> Figure | None:
    found = [figure for figure in figures if figure is not None]
    if not found:
        return None
    better = max if found[0].metric in HIGHER_IS_BETTER else min
    return better(found, key=lambda figure: figure.median)


def judge_main(results: Results) -> list[dict[str, Any]]:
    """The targets for the number format and device that the file measured first."""
    shapes = [ratio.shape for ratio in TARGETS]
    first = next((figure for figure in results.figures if figure.dtype and figure.shape in shapes), None)
    return judge(results, first.dtype if first else "", first.device if first else "cpu")


def _memory(results: Results, dtype: str, device: str) -> dict[str, Any]:
    base, adapters = (
        _fastest([results.find("memory", e, metric, shape=T5, dtype=dtype, device=device) for e in _settings("emorl")])
        for metric in ("base_mb", "adapters_mb")
    )
    row: dict[str, Any] = {"name": MEMORY_NAME, "target": f"≤ {MEMORY_MOST:g}", "value": None}
    if base is None or adapters is None:
        return {**row, "verdict": "not measured"}
    value = (base.median + adapters.median) / base.median
    row |= {"value": value, "min": value, "max": value, "verdict": "met" if value <= MEMORY_MOST else "not met"}
    return {**row, "above": f"{base.median + adapters.median:.1f}", "below": f"{base.median:.1f}", "rounds": 1}


def ratio_text(row: dict[str, Any]) -> str:
    """`0.93 (0.91-0.95)`; small ratios as 1/N, like their targets."""
    value, least, most = row["value"], row["min"], row["max"]
    if value < 0.2:
        return f"1/{1 / value:.1f} (1/{1 / least:.1f}-1/{1 / most:.1f})"
    return f"{value:.3f} ({least:.3f}-{most:.3f})"
