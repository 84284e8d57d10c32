"""A sweep as it is shown: a live table, plain lines, and a log for programs."""
