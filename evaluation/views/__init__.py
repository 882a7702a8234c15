"""A report as words, a table, a page and pictures."""
