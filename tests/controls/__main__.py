"""A table of all controls: ``python -m tests.controls``."""
