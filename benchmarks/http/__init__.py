"""Clients of a server, and what the programs that measure one are made of."""
