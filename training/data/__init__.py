"""Data sources for prompts and replies, one file each. Every split is by prompt and seeded."""
