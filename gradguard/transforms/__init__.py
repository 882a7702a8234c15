"""The gradient transforms: one mechanism a module."""
