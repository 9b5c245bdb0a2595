"""The search for weights: `run` searches and reports, `evaluations` computes scores, `strategies` pick points."""
