"""One file per API: each has a `router` that `server.app` includes."""
