"""A synthetic corpus from a grammar: prompts, replies and the words they are made of."""
