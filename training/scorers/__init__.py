"""Training and examining scorers; the scorers themselves are in `emorl_core.scorers`."""
