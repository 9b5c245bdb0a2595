"""Who may come in, how much at once, and how a refusal reads."""
