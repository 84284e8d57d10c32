"""``docs/scale.md``: what a sweep asks of storage, driver and tracker, measured piece by piece and put together."""
