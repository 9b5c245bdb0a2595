"""Commands that create and inspect bundles, bases and adapters."""
