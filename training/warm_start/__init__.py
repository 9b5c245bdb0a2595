"""Supervised training before reinforcement learning, and a small T5 from scratch."""
