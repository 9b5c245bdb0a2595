"""What an operator has no drafts written for: a callable or a list of patterns, asked before anything else is done."""
