"""Adapters: what one is, and the files that hold it."""
