"""The machine that computes: its device, number format and threads."""
