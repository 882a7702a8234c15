"""Attacks on what a real server saw of federated averaging, held against the same study's."""
