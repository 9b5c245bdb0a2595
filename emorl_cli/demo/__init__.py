"""`emorl demo`: the verb, its base and its bundle."""
