"""What is kept of a sweep: its summary, and all that touches MLflow."""
