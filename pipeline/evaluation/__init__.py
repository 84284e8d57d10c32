"""Evaluation of a model: MCMC chains, metrics and plots."""
