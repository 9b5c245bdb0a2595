"""Commands that train, search and compare."""
