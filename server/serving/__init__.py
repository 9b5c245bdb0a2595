"""The bundle being served, and the path of a request through it."""
