"""One command a table: each runs what it measures, prints it, and writes the page that holds it."""
