"""Points -> scores: in this process or on a Ray cluster, remembered in a log that a killed search goes on from."""
