"""The search for weights: grid, spaces, evaluator, log and report."""
