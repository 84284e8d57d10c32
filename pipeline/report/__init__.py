"""``python -m pipeline.report``: a finished sweep as Markdown, charts and one HTML file."""
