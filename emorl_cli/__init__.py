"""The `emorl` command: one file per subcommand, and the only package that imports all others."""
