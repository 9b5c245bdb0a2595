"""Decoder-only language models, run by transformers' own modelling code."""
