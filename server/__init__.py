"""The HTTP service: FastAPI over one engine. `server.app.create_app` builds it, `server.run.run` serves it."""
