"""Distances between sets of samples, each under a named protocol."""

from distill.metrics.frechet import Moments, frechet_distance
from distill.metrics.protocol import Protocol

__all__ = ["Moments", "Protocol", "frechet_distance"]
