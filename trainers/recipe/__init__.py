"""Recipes: the dataclasses that are their schema, the strict reader of YAML, and the shipped recipes."""
