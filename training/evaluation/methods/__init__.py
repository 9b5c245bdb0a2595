"""The compared methods: their training and their answers."""
