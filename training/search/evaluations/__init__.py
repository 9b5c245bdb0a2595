"""Points -> scores, in this process or on a Ray cluster, with a log from which an interrupted search resumes."""
