"""Training scorers from data: settings, fitting, report."""
