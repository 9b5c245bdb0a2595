"""From scores to tables: estimates, comparisons, plots, pages for blind readers."""
