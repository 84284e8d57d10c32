"""A sweep's report: what was found, in words, in charts, and as a page for people without the tracker."""
