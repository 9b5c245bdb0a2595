"""Training speed beside Hugging Face loops: `lockstep` (T5) and `causal`, over shared sides, peers and rounds."""
