"""The verbs that make bundles, bases and adapters of what is there, and look at them."""
