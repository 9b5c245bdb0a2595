"""What verbs share: options, what they read, what they print, progress, and how they end."""
