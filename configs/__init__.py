"""The recipes that ship with the package: one short YAML file for each experiment."""
