"""One package, so that each of its modules is imported once: fixtures number their buckets in one."""
