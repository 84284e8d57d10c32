"""Records of a sweep: its summary, the journal, and MLflow."""
