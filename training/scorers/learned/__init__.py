"""Scorers learned from data: settings, fitting, report."""
