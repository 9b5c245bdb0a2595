"""Which of the drafts that a person was shown they took: kept without a word of the drafts, and learned from."""
