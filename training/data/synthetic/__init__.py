"""A synthetic corpus from a grammar: prompts, replies and word lists."""
