"""Sources of rows: published tables, and a toy."""
