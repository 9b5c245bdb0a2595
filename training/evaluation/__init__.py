"""The comparison of methods: training, search, scoring and reporting."""
