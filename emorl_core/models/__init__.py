"""One folder per model family behind one interface, `family.py`; each ends at hidden states."""
