"""The exam of scorers and judges, which shows whether they can be fooled, and its results as a table."""
