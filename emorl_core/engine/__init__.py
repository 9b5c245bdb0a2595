"""Continuous batching over one model: schedule, run, postprocess."""
