"""Display of a sweep: a live table, plain lines, and an event log for programs."""
