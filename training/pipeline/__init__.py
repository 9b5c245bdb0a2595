"""From a recipe to a bundle: data and base prepared, trained, written."""
