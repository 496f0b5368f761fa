"""The evaluation of samples: protocols, the statistics of real images, and the samples, divided over the ranks."""

from trainers.evaluation.measure import NotMeasured, draw_samples, evaluate, evaluation_data
from trainers.evaluation.protocols import check_evaluation, check_images, fit_protocol, load_extractor

__all__ = [
    "NotMeasured",
    "check_evaluation",
    "check_images",
    "draw_samples",
    "evaluate",
    "evaluation_data",
    "fit_protocol",
    "load_extractor",
]
