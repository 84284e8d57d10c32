"""``docs/results/scale.md``: what a sweep asks of storage, driver and tracker, measured and put together."""
