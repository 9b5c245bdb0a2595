"""Supervised learning before reinforcement, and a small T5 from scratch."""
