"""Drafts to choose from: a few good and different texts, out of one sweep over a spread of weights."""
