"""The paper's search over 32 prompts in several ways: shared sweeps, separate requests, and as published.

    python -m benchmarks.sweep --bundle BUNDLE --prompts FILE --rounds 3

The 135 evaluations are those of the published grid search (3 objectives, 5 levels) along a fixed path to the paper's
best weights, so no scorer is needed. The ways alternate in every round, in one process:

- search: as `emorl search --space cube`: a level is one shared sweep, and texts between equal neighbours are not
  generated.
- sweep: the same, but every distinct direction is generated.
- separate, rays: one generate request per prompt and distinct direction, batched by the same engine.
- separate, all: one generate request per prompt and evaluation, including repeats and multiples, as in a plain loop.
- published: three full Hugging Face models; encoder and decoder run again for every token, without a cache, until every
  row has ended (method.md section 3). Measured at `--published-points` points and scaled to 135.

Times are this process's CPU seconds (`process_time`), which vary least on a busy machine, and wall-clock seconds.
Ratios are of CPU seconds within a round. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

PAPER = (0.78, 0.5, 0.06)  # the published best weights


def path_of_the_paper(evaluate: Callable[[Sequence[Any]], None]) -> list[list[Any]]:
    """The points of each level, including repeats, on the way to the paper's weights."""
    from training.search.strategies.grid import search
    from training.search.strategies.spaces import Cube

    def score(points: Sequence[Any]) -> list[float]:
        evaluate(points)
        return [-sum((x - c) ** 2 for x, c in zip(point, PAPER, strict=True)) for point in points]

    return [list(level.points) for level in search(Cube(3), 5, score).levels]


class Ours:
    """One ensemble, whose prefill cache is cleared before every run."""

    def __init__(self, bundle: Path, prompts: list[str], slots: int, max_new_tokens: int) -> None:
        from emorl_core.ensemble import Ensemble

        self.ensemble = Ensemble.load(bundle, device="cpu", dtype="float32", slots=slots, prefill_cache_bytes=2**30)
        if len(self.ensemble.objectives) < 3:
            raise SystemExit("the bundle has fewer than three objectives")
        self.objectives = self.ensemble.objectives[:3]
        self.prompts, self.max_new_tokens = prompts, max_new_tokens

    def reset(self) -> None:
        self.ensemble.engine.runner.prefill_cache.clear()

    def weights(self, point: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.objectives, point, strict=True))

    def search(self, *, infer: bool) -> dict[tuple[int, Any], str]:
        from emorl_core.scorers import checked
        from training.data.records import Record
        from training.search.evaluations.evaluator import Evaluator
        from training.search.evaluations.generator import EnsembleGenerator
        from training.search.evaluations.in_process import InProcess
        from training.search.strategies.spaces import ray

        class Nothing:
            __name__ = "nothing"

            def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:  # noqa: ARG002
                return [0.0] * len(completions)

        generator = EnsembleGenerator(self.ensemble, self.objectives, self.prompts, max_new_tokens=self.max_new_tokens)
        records, scorers = [Record(prompt) for prompt in self.prompts], {"nothing": checked(Nothing())}
        evaluator = Evaluator(InProcess(generator, records, scorers, infer=infer))

        def evaluate(points: Sequence[Any]) -> None:
            evaluator.tables(points)

        path_of_the_paper(evaluate)
        self.counts = evaluator.counts
        return {
            (prompt, ray(done.point)): name  # of the tokens, for comparison
            for done in evaluator.evaluations()
            for prompt, name in enumerate(done.tokens)
        }

    def separate(self, points: Sequence[Any]) -> dict[tuple[int, Any], str]:
        """One request per prompt and point, with all requests of a level in the engine's queue together; without
        log-probabilities, like a sweep."""
        from training.search.evaluations.evaluation import name_of
        from training.search.strategies.spaces import ray

        pairs = [(prompt, point) for point in points if any(point) for prompt in range(len(self.prompts))]
        requests = [
            self.ensemble.request(
                self.prompts[prompt],
                weights=self.weights(point),
                max_new_tokens=self.max_new_tokens,
                seed=0,
                stream=False,
            )
            for prompt, point in pairs
        ]
        done = self.ensemble._driver.finish([replace(request, logprobs=False) for request in requests])
        return {
            (prompt, ray(point)): name_of(completion.token_ids)
            for (prompt, point), completion in zip(pairs, done, strict=True)
        }


class Published:
    """Three full models in one process, as in the published loop."""

    def __init__(self, ours: Ours) -> None:
        import warnings

        from peft import PeftModel
        from transformers import AutoModelForSeq2SeqLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        spec = ours.ensemble.bundle
        assert spec is not None
        self.models = []
        for name in ours.objectives:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                base = AutoModelForSeq2SeqLM.from_pretrained(spec.base_folder())
                self.models.append(PeftModel.from_pretrained(base, spec.adapter_folder(name)).merge_and_unload().eval())
        self.rows = [ours.ensemble.encode(prompt) for prompt in ours.prompts]
        self.max_new_tokens = ours.max_new_tokens

    def run(self, point: Sequence[float]) -> list[tuple[int, ...]]:
        """All prompts in one batch; returns the tokens of each up to its end."""
        import torch

        longest = max(map(len, self.rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in self.rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in self.rows])
        config = self.models[0].config
        scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
        tokens = torch.zeros(len(self.rows), 1, dtype=torch.int64)
        ended = torch.zeros(len(self.rows), dtype=torch.bool)
        with torch.inference_mode():
            while tokens.shape[1] <= self.max_new_tokens and not bool(ended.all()):
                mixed = torch.zeros(())
                for weight, model in zip(point, self.models, strict=True):
                    out = model(
                        input_ids=ids,
                        attention_mask=mask,
                        decoder_input_ids=tokens,
                        output_hidden_states=True,
                        use_cache=False,
                    )
                    mixed = mixed + weight * out.decoder_hidden_states[-1][:, -1]
                logits = self.models[0].lm_head(mixed * config.d_model**-0.5 if scaled else mixed)
                chosen = logits.argmax(-1, keepdim=True)
                tokens = torch.cat([tokens, chosen], dim=1)
                ended |= chosen.squeeze(1) == 1
        rows = [row[1:] for row in tokens.tolist()]
        return [tuple(row[: row.index(1) + 1] if 1 in row else row) for row in rows]


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    cpu, clock = time.process_time(), time.perf_counter()
    result = run()
    return result, {"cpu_s": time.process_time() - cpu, "clock_s": time.perf_counter() - clock}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to most)."""
    middle, low, high = (f"{each:.{digits}f}" for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder")
    parser.add_argument("--prompts", type=Path, required=True, help="text file, one prompt per line")
    parser.add_argument(
        "--count", type=int, default=32, help="number of prompts, from the start of the file (default 32)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="maximum tokens per text (default 64)")
    parser.add_argument("--slots", type=int, default=64, help="branches to run concurrently (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--published-points", type=int, default=1, help="points, of 135, to measure as published; 0: none (default 1)"
    )
    parser.add_argument("--skip-all", action="store_true", help="skip `separate, all`")
    args = parser.parse_args()
    import torch

    from emorl_core.files.text_files import read_lines

    torch.set_num_threads(args.threads)
    prompts = [line for line in read_lines(args.prompts) if line.strip()][: args.count]
    ours = Ours(args.bundle, prompts, args.slots, args.max_new_tokens)
    published = Published(ours) if args.published_points else None
    from training.search.strategies.spaces import ray

    levels = path_of_the_paper(lambda points: None)
    requested = [point for level in levels for point in level]
    first = {ray(point): point for point in reversed(requested)}
    seen: set[Any] = set()
    by_level = []
    for level in levels:
        by_level.append([first[r] for r in dict.fromkeys(map(ray, level)) if r not in seen])
        seen.update(map(ray, level))
    some = [point for point in dict.fromkeys(requested) if all(point)][:: max(1, 60 // max(1, args.published_points))]
    some = some[: args.published_points]

    def separate(groups: Sequence[Sequence[Any]]) -> dict[Any, str]:
        return {key: name for group in groups for key, name in ours.separate(group).items()}

    ways: dict[str, Callable[[], Any]] = {
        "search": lambda: ours.search(infer=True),
        "sweep": lambda: ours.search(infer=False),
        "separate, rays": lambda: separate(by_level),
    }
    if not args.skip_all:
        ways["separate, all"] = lambda: separate(levels)
    if published is not None:
        ways["published"] = lambda: [published.run(point) for point in some]
    times: dict[str, list[dict[str, float]]] = {}
    notes: dict[str, Any] = {}
    for _ in range(args.rounds):
        texts: dict[str, Any] = {}
        for name, way in ways.items():
            ours.reset()
            texts[name], took = timed(way)
            times.setdefault(name, []).append(took)
            if name in ("search", "sweep"):
                counts = ours.counts
                notes[name] = {
                    "generated": counts.texts_generated,
                    "implied": counts.texts_implied,
                    "lane_row_steps": counts.lane_row_steps,
                    "unshared_lane_row_steps": counts.unshared_lane_row_steps,
                }
        notes["differing"] = {
            name: sum(found != texts["sweep"].get(key) for key, found in texts[name].items() if any(key[1]))
            for name in texts
            if name != "published"
        }
        notes["compared"] = len(texts["separate, rays"])
        if published is not None:
            from training.search.evaluations.evaluation import name_of

            differing = [
                name_of(tokens) != texts["sweep"][prompt, ray(point)]
                for point, rows in zip(some, texts["published"], strict=True)
                for prompt, tokens in enumerate(rows)
            ]
            notes["differing"]["published"] = sum(differing)
    scale = len(requested) / max(1, len(some))
    titles = ("times the sweep", "times the search")
    print(f"{'seconds of':16}{'CPU, median (range)':>28}{'clock':>28}{titles[0]:>26}{titles[1]:>26}")
    ratios: dict[str, dict[str, list[float]]] = {}
    for name, runs in times.items():
        factor = scale if name == "published" else 1.0
        cells = [spread([factor * one[key] for one in runs]) for key in ("cpu_s", "clock_s")]
        ratios[name] = {
            other: [factor * one["cpu_s"] / its["cpu_s"] for one, its in zip(runs, times[other], strict=True)]
            for other in ("sweep", "search")
        }
        cells += [spread(values, 1) for values in ratios[name].values()]
        print(f"{name:16}{cells[0]:>28}{cells[1]:>28}{cells[2]:>26}{cells[3]:>26}")
    if published is not None:
        print(f"published: {len(some)} of {len(requested)} points measured, multiplied by {scale:g}")
    print(f"texts unlike the sweep's, of {notes['compared']}: {notes['differing']}")
    machine = {"cpu": platform.processor() or platform.machine(), "threads": args.threads, "slots": args.slots}
    print(
        json.dumps(
            {"machine": machine, "prompts": len(prompts), "scale": scale, "runs": times, "ratios": ratios, **notes}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
