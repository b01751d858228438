"""Names and files to loaded networks."""
