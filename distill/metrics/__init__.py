"""Metrics of sets of samples, each under a named protocol."""

from distill.metrics.classifier import Classifier, ClassifierFeatures
from distill.metrics.extractor import Components, Extractor
from distill.metrics.frechet import Moments, frechet_distance
from distill.metrics.protocol import Protocol

__all__ = ["Classifier", "ClassifierFeatures", "Components", "Extractor", "Moments", "Protocol", "frechet_distance"]
