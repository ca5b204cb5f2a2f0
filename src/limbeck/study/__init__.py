"""Studies: arms x seeds of recipes, in one table."""
