"""Programs that measure; each answers a question of a page in `docs/`, with its command there. Not part of the service.

speed/          `emorl bench`: this engine beside its alternatives
training/       `lockstep`, `causal`: a training step beside Hugging Face + PEFT loops
http/           clients, attackers and measurements that the server programs share

A server:       `load`, `siege`, `reloads`, `busy_neighbour`, `scored_streams`
Replicas:       `replicas`, `proxy`, `queueing`
Decoding:       `causal_step`, `long_prompt`, `copied_tokens`, `sweep`, `exact_map`
Texts:          `demo_texts`, `drafts`, `choices`, `lexical_scorers`
All of these:   `make_bundle` writes bundles with random weights
"""
