"""The engine's side of the server: its thread, the process of its own that it has, and what goes to and fro."""
