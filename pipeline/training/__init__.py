"""Training of one trial on its workers: the loop, its checkpoints, and the export of its model."""
