"""Choosing points: the grid, the spaces it divides, and TPE."""
