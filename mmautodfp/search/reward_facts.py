"""What a search knows of its reward, which may be any callable; a reward of this package says more about itself."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmautodfp.utils import AutoDFPError


@dataclass(frozen=True)
class RewardFacts:
    """What a reward measures, and on what.

    Attributes:
        name (str): Name of what it measures, the same for rewards that can be compared.
        kind (tuple[type, str | None]): Its class, and its metric if it names one.
        images (Sequence[str] | None): Names of its images; None if it does not tell them.
        stages (Sequence[int]): How many images there are after each step of its ``evaluate``; empty if it has no steps.
    """

    name: str
    kind: tuple[type, str | None]
    images: Sequence[str] | None
    stages: Sequence[int]

    @classmethod
    def of(cls, reward: Callable) -> 'RewardFacts':
        """Look at a reward. One that is not ours may use the same names for other things.

        Raises:
            AutoDFPError: It is one of ours and not prepared.
        """
        if callable(getattr(reward, 'one_batch', None)):
            try:
                reward.one_batch()
            except AttributeError as error:
                raise AutoDFPError(
                    f'a search was to be rewarded by a {type(reward).__name__} that is not prepared ({error}); call '
                    'its prepare(model, dataloader) first'
                ) from error
        own = getattr(reward, 'identity', None)
        name = own if isinstance(own, str) else getattr(reward, '__qualname__', type(reward).__qualname__)
        images, stages = getattr(reward, 'images', None), getattr(reward, 'stages', None)
        in_stages = _holds(stages, int) and callable(getattr(reward, 'evaluate', None))
        kind = type(reward), getattr(reward, 'name', None)
        return cls(name, kind, images if _holds(images, str) else None, stages if in_stages else [])

    @property
    def identity(self) -> list[str | None]:
        """The name, and a SHA-256 over the images' file names (None if it does not tell its images)."""
        if self.images is None:
            return [self.name, None]
        return [self.name, hashlib.sha256('\n'.join(map(os.path.basename, self.images)).encode()).hexdigest()]

    def images_beside(self, judge: 'RewardFacts') -> tuple[int, int]:
        """The numbers of images of the reward and of a judge; (0, 1) if unknown, or if the two are of other kinds."""
        alike = self.kind == judge.kind and self.kind[1] is not None
        return (len(self.images), len(judge.images)) if alike and self.images and judge.images else (0, 1)


def _holds(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)
