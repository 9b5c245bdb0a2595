"""Authentication, limits on requests and connections, and error responses."""
