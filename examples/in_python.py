"""Steering in your own process, without a server.

python examples/in_python.py [BUNDLE]
"""

import sys

from emorl_core import Ensemble

PROMPT = "I cannot keep up at work."

ensemble = Ensemble.load(sys.argv[1] if len(sys.argv) > 1 else "my-bundle")
first, second = ensemble.objectives[:2]
print("objectives:", ", ".join(ensemble.objectives))

# One prompt under two mixes, in one batch.
mixes = [{first: 0.9, second: 0.1}, {first: 0.1, second: 0.9}]
for done in ensemble.generate([PROMPT, PROMPT], weights=mixes, max_new_tokens=32):
    print(done.weights, "->", done.text)

# Token by token. Leaving the loop early would cancel the rest.
for event in ensemble.stream(PROMPT, weights={first: 0.5, second: 0.5}, max_new_tokens=32):
    print(event.text, end="", flush=True)
print()

# Which objective spoke for which token: the parts of a token add up to the margin by which it won.
done = ensemble.generate(PROMPT, weights={first: 0.5, second: 0.5}, max_new_tokens=8, attribution=True)
for text, token in zip(done.token_texts, done.attributions, strict=True):
    parts = dict(zip(ensemble.lanes, token.parts, strict=True))
    print(f"{text!r:16} {first} {parts[first]:+.2f}  {second} {parts[second]:+.2f}")

# Sampling: the same seed gives the same text.
sampled = [ensemble.generate(PROMPT, temperature=0.8, seed=7, max_new_tokens=16).text for _ in range(2)]
assert sampled[0] == sampled[1]

# Many mixes of one prompt as one tree: what is common is computed once.
swept = ensemble.sweep(PROMPT, resolution=4, max_new_tokens=16)
print(len(swept.distinct(0)), "texts from", len(swept.of_prompt(0)), "mixes")
