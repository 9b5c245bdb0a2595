"""Where prompts and replies come from. One file per source; every split is by prompt and seeded."""
