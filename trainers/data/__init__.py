"""Where images and labels come from, and the batches a rank draws from them."""

from trainers.data.dataset import Dataset
from trainers.data.sources import DATA, Data, DataFree, Digits, Images

__all__ = ["DATA", "Data", "DataFree", "Dataset", "Digits", "Images"]
