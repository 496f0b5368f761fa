"""A recipe: the dataclasses that are its schema, the strict reader of YAML, the shipped recipes."""
