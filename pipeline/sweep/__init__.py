"""``python -m pipeline.sweep``: a search over an experiment's hyper-parameters, on Ray Tune."""
