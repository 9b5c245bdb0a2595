"""Files: read within bounds, written whole or not at all, parsed strictly, named by hashes."""
