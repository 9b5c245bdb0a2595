"""Training speed compared with Hugging Face loops: `lockstep` (T5), `causal`, and their shared sides, peers, rounds."""
