"""Scorers that count words: for the demo and for tests."""
