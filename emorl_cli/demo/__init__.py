"""`emorl demo`: the command, its base and its bundle."""
