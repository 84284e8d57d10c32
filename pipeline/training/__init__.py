"""One trial on its workers: the loop, its checkpoints, and the model as it is exported."""
