"""Speculative decoding by prompt lookup: tokens copied from prompts and replies are proposed where that pays off."""
