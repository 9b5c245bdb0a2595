"""The recipe file: its sections, its checks, its overrides."""
