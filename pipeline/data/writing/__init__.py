"""Writing of a store: a source becomes shards."""
