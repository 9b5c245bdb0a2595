"""HTTP clients and shared parts of the programs that measure a server."""
