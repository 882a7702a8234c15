"""Model updates by name: what a client of federated averaging sends, defended as one message."""
