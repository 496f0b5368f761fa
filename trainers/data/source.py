"""The base class of data sources."""

from dataclasses import dataclass

from trainers.data.dataset import Dataset


@dataclass(frozen=True)
class Data:
    """A source of images in [-1, 1], labels and prompts, or of some of them."""

    def load(self) -> Dataset:
        """Open the data set.

        Raises:
            UserError: It is missing or damaged, or a setting does not go with it.
        """
        raise NotImplementedError
