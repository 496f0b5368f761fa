"""Data sets of images, labels and prompts, their sources, and the batches that a rank draws from them."""

from trainers.data.dataset import Dataset
from trainers.data.mixture import Mixture
from trainers.data.prompts import Prompts
from trainers.data.source import Data
from trainers.data.sources import DATA, DataFree, Digits, GivenData, Images

__all__ = ["DATA", "Data", "DataFree", "Dataset", "Digits", "GivenData", "Images", "Mixture", "Prompts"]
