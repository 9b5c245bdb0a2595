"""Offline work: data, scorers, warm start, training, search, evaluation. Never imports `server`."""
