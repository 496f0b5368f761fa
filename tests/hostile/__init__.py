"""Hostile and damaged inputs for every reader, made from seeds."""
