"""Handwritten digits with Flower, and gradguard between the clients and the server."""
