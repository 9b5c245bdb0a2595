"""Scorers trained and examined; what judges a text is in `emorl_core.scorers`."""
