"""The verbs that train, search and compare."""
