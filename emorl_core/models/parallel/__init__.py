"""Tensor parallelism: one model split over the processes of one machine."""
