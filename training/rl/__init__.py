"""The trainer: reinforcement learning of several adapters in lockstep. Independent of recipes."""
