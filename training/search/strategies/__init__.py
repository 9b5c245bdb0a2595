"""Where a search looks next: the grid, the spaces it divides, and TPE."""
