"""Benchmarks of the daemon as it is run: a process of its own, on a real broker."""
