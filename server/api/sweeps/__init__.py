"""One prompt under many weights: `/sweep`, and the exact answers of `/sweep/line` and `/sweep/map`."""
