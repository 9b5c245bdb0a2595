"""Whether a scorer can be fooled: what every scorer and judge is asked, and the table of its answers."""
