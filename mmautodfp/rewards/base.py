"""What a search asks of a reward."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn


class Reward(ABC):
    """The worth of a model on a fixed choice of images.

    Attributes:
        name (str): The metric's name in logs and tables.
    """

    name: str = 'reward'

    @abstractmethod
    def prepare(self, model: nn.Module, dataloader: dict) -> None:
        """Choose and load the images, once, before the search.

        Args:
            model (nn.Module): The dense model; its data preprocessor is used.
            dataloader (dict): Config of the validation data loader.

        Raises:
            AutoDFPError: The data cannot be had, or there is nothing to evaluate on.
        """

    @abstractmethod
    def __call__(self, model: nn.Module) -> float:
        """Evaluate a model, higher is better. Silent; the model is in eval mode before and after."""

    @abstractmethod
    def one_batch(self) -> dict[str, Any]:
        """A batch of one image, as the model's ``forward`` takes it, to count FLOPs with."""

    @abstractmethod
    def held_out(self, model: nn.Module, dataloader: dict) -> 'Reward | None':
        """The same metric on the images of ``dataloader`` that this one does not use.

        Returns:
            Reward | None: Prepared; None if no image is left over.
        """

    @property
    @abstractmethod
    def images(self) -> list[str]:
        """What was chosen, a name an image: tells whether two rewards are the same, and whether they overlap."""
