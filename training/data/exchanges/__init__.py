"""Short exchanges written for this project, each with replies in three styles."""
