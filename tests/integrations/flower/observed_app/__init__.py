"""A Flower app for a test: digits by FedAvg clients, watched by their server."""
