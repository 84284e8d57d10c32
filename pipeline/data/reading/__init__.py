"""Reading of a store: shards become batches."""
