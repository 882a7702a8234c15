"""The page's charts as plain dicts in the form that plotly.js reads, built from rows."""
