"""Reports of jobs, as values and for people."""
