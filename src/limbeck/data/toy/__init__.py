"""Small data sets of the project's own making."""
