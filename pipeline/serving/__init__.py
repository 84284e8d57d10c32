"""A trained model as a package that MLflow serves, and the registry that knows which one is the best."""
