"""What the lexical scorers reward: mean scores by style of the synthetic corpus, and of simple exploits.

    python -m benchmarks.lexical_scorers                       # the synthetic corpus
    python -m benchmarks.lexical_scorers --pair pair.csv       # also: PAIR, high- over low-quality replies

Prints Markdown. Deterministic: no timing, no randomness beyond the corpus's seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import fmean

from emorl_core.scorers import Context, build_scorer
from training.data.records import Record
from training.data.sources import load_records
from training.data.synthetic.grammar import generate
from training.data.synthetic.person import to_second_person
from training.data.synthetic.styles import STYLES
from training.scorers.learned.metrics import ranking_accuracy

RECORDS, KNOWN, SEED = 4000, 3000, 0  # records for the trigram model; the rest is unseen
CHEAP: dict[str, Callable[[str], str]] = {
    "the prompt copied": lambda prompt: prompt,
    "the prompt with the person turned round": to_second_person,
    "its longer words, listed": lambda prompt: "you " + " ".join(word for word in prompt.split() if len(word) > 4),
    "one reflection for everybody": lambda _: "It sounds like you feel overwhelmed because of work.",
    "one validation for everybody": lambda _: "I'm sorry. That sounds so hard. It makes sense that you feel sad.",
    "all feelings at once": lambda _: "You feel sad, angry, lonely, afraid, tired, ashamed, stuck and hurt.",
    "a stammer": lambda _: "You feel you feel you feel you feel you feel sad.",
    "nothing": lambda _: "",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", help="CSV file of PAIR (default: only the synthetic corpus)")
    args = parser.parse_args()

    records = generate(RECORDS, SEED)
    context = Context(device="cpu", corpus=records[:KNOWN])
    scorers = [build_scorer(f"lexical_{name}", context) for name in ("reflection", "empathy", "fluency")]
    held_out = records[KNOWN:]
    print("| reply | " + " | ".join(scorer.__name__ for scorer in scorers) + " |\n|---|---|---|---|")

    def row(name: str, rows: list[Record]) -> None:
        prompts, replies = [record.prompt for record in rows], [record.response or "" for record in rows]
        means = [fmean(scorer(prompts, replies)) for scorer in scorers]
        print(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")

    for style in STYLES:
        row(f"style `{style}`", [record for record in held_out if record.extras["style"] == style])
    prompts = [record.prompt for record in held_out]
    for name, make in CHEAP.items():
        replies = [make(prompt) for prompt in prompts]
        means = [fmean(scorer(prompts, replies)) for scorer in scorers]
        print(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    if args.pair:
        graded = load_records({"kind": "pair", "path": args.pair, "view": "graded"}).records
        prompts, replies = [record.prompt for record in graded], [record.response or "" for record in graded]
        levels = [record.level or 0.0 for record in graded]
        lengths = [float(len(reply.split())) for reply in replies]
        for name, scores in (("lexical_reflection", scorers[0](prompts, replies)), ("the longer reply", lengths)):
            share, pairs = ranking_accuracy(scores, levels, prompts, better=2.0, worse=0.0)
            print(f"\nPAIR, high over low, {name}: {share:.3f} of {pairs} pairs")


if __name__ == "__main__":
    main()
