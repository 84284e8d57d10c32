"""Published tables, and a toy."""
