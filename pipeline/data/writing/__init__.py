"""A source becomes shards."""
