"""What a search asks of a reward."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import nn

from mmautodfp.utils import AutoDFPError


class OtherDataset(AutoDFPError):
    """A data set of a kind that a reward cannot read."""


class Reward(ABC):
    """The worth of a model on a fixed choice of images.

    A search takes any callable that gives a number for a model. A reward says more: which images it looks at, after
    how many of them a race may stop, and what is left to report. :func:`mmautodfp.api.search` wants it prepared.

    Attributes:
        name (str): The metric's name in logs and tables.
        needs_data (bool): Whether it reads a data set. If not, none is opened in the whole run.
    """

    name: str = 'reward'
    needs_data: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, model: nn.Module, dataloader: dict, layers: Sequence[str] = ()) -> None:
        """Choose and load the images, once, before the search.

        Args:
            model (nn.Module): The dense model; its data preprocessor is used.
            dataloader (dict): Config of the validation data loader.
            layers (Sequence[str]): Paths of the layers that plans will prune, in forward order; what runs before the
                first of them is the same for all plans. Defaults to none: not told.

        Raises:
            AutoDFPError: The data cannot be had, or there is nothing to evaluate on.
        """

    @abstractmethod
    def __call__(self, model: nn.Module) -> float:
        """Evaluate a model, higher is better. Silent; the model is in eval mode before and after."""

    def evaluate(self, model: nn.Module) -> Iterator[float]:
        """Evaluate a model on more and more of the images, as :attr:`stages` says; a race may stop in between.

        Yields:
            float: The metric on the images so far; the last one is what calling the reward gives.
        """
        yield self(model)

    @property
    def reported_name(self) -> str:
        """Name of the metric of :meth:`held_out`. By default the reward's own."""
        return self.name

    @property
    def stages(self) -> list[int]:
        """How many images there are after each step of :meth:`evaluate`, ascending. One stage by default."""
        return [len(self.images)]

    @property
    def identity(self) -> str:
        """What two rewards on the same images must share, so that their figures can be compared."""
        return self.name

    @abstractmethod
    def one_batch(self) -> dict[str, Any]:
        """A batch of one image, as the model's ``forward`` takes it, to count FLOPs with."""

    def judge(self, model: nn.Module, dataloader: dict, reported: dict | None = None) -> 'Reward | None':
        """The same metric on other images, to choose among the best plans of a search.

        It comes before :meth:`held_out`, which then leaves these images out, too. By default there is none.

        Args:
            model (nn.Module): The dense model.
            dataloader (dict): Config of the validation data loader, whose further images are taken: as many as this
                reward has, or what is left.
            reported (dict | None): Config of the data loader whose images are reported. Of those that both have, every
                other one stays for the report. Defaults to None: there is none.

        Returns:
            Reward | None: Prepared; None if no image is left over.

        Raises:
            OtherDataset: It cannot read such a data set.
        """
        return None

    @abstractmethod
    def held_out(self, model: nn.Module, dataloader: dict) -> 'Reward | None':
        """The metric to report, on the images of ``dataloader`` that neither this one nor its :meth:`judge` uses.

        Returns:
            Reward | None: Prepared; None if no image is left over.
        """

    @property
    @abstractmethod
    def images(self) -> list[str]:
        """What was chosen, a name an image: tells whether two rewards are the same, and whether they overlap."""
