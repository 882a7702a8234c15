"""Measurements that a stranger can run again; ``python -m benchmarks`` runs them all."""
