"""Doing what a study asks for: cells, what they share, and where they are worked on."""
