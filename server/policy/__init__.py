"""The operator's policy on which messages get no draft: a callable or a list of patterns, asked before any other
work."""
