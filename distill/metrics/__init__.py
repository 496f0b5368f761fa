"""Metrics of sets of samples, each under a named protocol."""

from distill.metrics.classifier import Classifier, ClassifierFeatures
from distill.metrics.extractor import Components, Extracted, Extractor, content_hash
from distill.metrics.features import FEATURES, FeatureSettings, read_protocol
from distill.metrics.frechet import Moments, frechet_distance
from distill.metrics.kid import kernel_distance
from distill.metrics.precision_recall import precision_recall
from distill.metrics.protocol import METRICS, Protocol, allowed_metrics, better
from distill.metrics.reference import MOST_KEPT, Reference
from distill.metrics.tally import Tally

__all__ = [
    "FEATURES",
    "METRICS",
    "MOST_KEPT",
    "Classifier",
    "ClassifierFeatures",
    "Components",
    "Extracted",
    "Extractor",
    "FeatureSettings",
    "Moments",
    "Protocol",
    "Reference",
    "Tally",
    "allowed_metrics",
    "better",
    "content_hash",
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
    "read_protocol",
]
