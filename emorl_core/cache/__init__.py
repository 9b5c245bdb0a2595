"""Keys and values of running sequences, and of prompts that were prefilled before."""
