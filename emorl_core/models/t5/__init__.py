"""The T5 family: T5 v1.0 and 1.1, FLAN-T5, mT5."""
