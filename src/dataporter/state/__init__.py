"""The state: its schema, its formats, and what may change between save and load."""
