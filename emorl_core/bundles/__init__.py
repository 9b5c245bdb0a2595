"""The bundle: its format, and the files stored in it."""
