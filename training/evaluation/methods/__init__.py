"""The methods that are compared: what each is trained with, and what it answers."""
