"""Shared by all commands: options, input, output, progress, and exit codes."""
