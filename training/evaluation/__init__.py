"""Methods side by side: trained, searched, scored and reported."""
