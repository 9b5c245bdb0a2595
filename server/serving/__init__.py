"""Loading a bundle, the engine's thread, and a request's way through it."""
