"""What runs have left on disk: read, put into tables, drawn, and shown on one page."""
