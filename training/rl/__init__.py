"""The trainer: reinforcement learning of several adapters in lockstep, and what it is made of. It knows no recipe."""
