"""The engine's side of the server: its thread, its own process, and the messages exchanged with the event loop."""
