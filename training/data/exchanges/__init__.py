"""Short exchanges that the project wrote itself, in three manners of answering."""
