"""``python -m pipeline.compare``: several sweeps, seeds or objectives in one table and one page."""
