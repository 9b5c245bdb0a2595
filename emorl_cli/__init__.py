"""The `emorl` command: one file per verb, and the only place that knows every room."""
