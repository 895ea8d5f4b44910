"""The interface of rewards."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import nn

from mmautodfp.utils import AutoDFPError


class OtherDataset(AutoDFPError):
    """A data set is of a kind that a reward cannot read."""


class Reward(ABC):
    """A metric of a model on a fixed choice of images.

    A search takes any callable that returns a number for a model. A reward also says which images it uses, after how
    many of them a race may stop, and how to measure on other images. Call :meth:`prepare` before
    :func:`mmautodfp.api.search`.

    Attributes:
        name (str): Name of the metric in logs and tables.
        needs_data (bool): Whether it reads a data set. If not, the run opens none. Defaults to True.
    """

    name: str = 'reward'
    needs_data: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, model: nn.Module, dataloader: dict, layers: Sequence[str] = ()) -> None:
        """Choose and load the images, once before the search.

        Args:
            model (nn.Module): The dense model; its data preprocessor is used.
            dataloader (dict): Config of the validation data loader.
            layers (Sequence[str]): Paths of the layers that plans will change, in forward order; what runs before the
                first of them may be computed once for all plans. Defaults to none: not known.

        Raises:
            AutoDFPError: The data cannot be read, or there is nothing to evaluate on.
        """

    @abstractmethod
    def __call__(self, model: nn.Module) -> float:
        """Evaluate a model; higher is better. It prints nothing. The model is in eval mode and stays so."""

    def evaluate(self, model: nn.Module) -> Iterator[float]:
        """Evaluate a model stage by stage, on more and more images; a race may stop after each stage.

        Yields:
            float: The metric on the images of all stages so far, see :attr:`stages`. The last one is what a call of the
            reward returns.
        """
        yield self(model)

    @property
    def reported_name(self) -> str:
        """Name of the metric of :meth:`held_out`. Defaults to :attr:`name`."""
        return self.name

    @property
    def stages(self) -> list[int]:
        """Number of images after each stage of :meth:`evaluate`, ascending. By default there is one stage."""
        return [len(self.images)]

    @property
    def identity(self) -> str:
        """Text that two rewards on the same images must have in common if their figures can be compared."""
        return self.name

    @abstractmethod
    def one_batch(self) -> dict[str, Any]:
        """A batch of one image, as arguments of the model's ``forward``, on which FLOPs are counted."""

    def judge(self, model: nn.Module, dataloader: dict, reported: dict | None = None) -> 'Reward | None':
        """The same metric on other images, to choose among the best plans of a search. By default there is none.

        Call it before :meth:`held_out`, which then leaves these images out too.

        Args:
            model (nn.Module): The dense model.
            dataloader (dict): Config of the validation data loader. As many of its images as this reward has are taken,
                or all that the reward does not use.
            reported (dict | None): Config of the data loader of the held-out images. Of the images in both data sets,
                every other one is left for it. Defaults to None: there is none.

        Returns:
            Reward | None: Prepared; None if there are no such images.

        Raises:
            OtherDataset: The validation data set is of a kind that the reward cannot read.
        """
        return None

    @abstractmethod
    def held_out(self, model: nn.Module, dataloader: dict) -> 'Reward | None':
        """The metric to report, on the images of ``dataloader`` that neither this reward nor its :meth:`judge` uses.

        Args:
            model (nn.Module): The dense model.
            dataloader (dict): Config of the test data loader.

        Returns:
            Reward | None: Prepared; None if there are no such images.

        Raises:
            OtherDataset: The data set is of a kind that the reward cannot read.
        """

    @property
    @abstractmethod
    def images(self) -> list[str]:
        """Names of the chosen images, by which two rewards are compared and images in both are found."""
