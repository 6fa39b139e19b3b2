"""Reference runs and timings. Nothing in ``src`` imports this package."""
