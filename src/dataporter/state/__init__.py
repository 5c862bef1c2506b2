"""State: its schema, and what may change between save and load."""
