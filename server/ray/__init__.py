"""The same HTTP application on many replicas, by Ray Serve (extra `ray`). Nothing else imports `ray`."""
