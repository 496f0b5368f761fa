"""Recipes: one short YAML file per experiment, shipped with the package."""
