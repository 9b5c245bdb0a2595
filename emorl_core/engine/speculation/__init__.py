"""Tokens copied from prompts and replies, proposed where that pays."""
