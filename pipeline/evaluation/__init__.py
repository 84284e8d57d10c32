"""What a model is measured by: chains, metrics and figures."""
