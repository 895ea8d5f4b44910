"""Synthetic images, drawn at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_LEAVES = 30  # ellipses in each image
TEXTURE = 0.15  # standard deviation of each pixel's own noise, relative to that of the ellipses' grey


@torch.no_grad()
def dead_leaves(
    num_images: int,
    size: tuple[int, int],
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Images of overlapping random ellipses on a plain ground, normalised as by a data preprocessor.

    Pixels are in 0 to 255 before they are normalised. An image depends on its number, not on the other images: drawn in
    batches or all at once, the images are the same.

    Args:
        num_images (int): M.
        size (tuple[int, int]): Height and width.
        mean (Sequence[float] | Tensor): [C], subtracted from the pixels.
        std (Sequence[float] | Tensor): [C], by which they are divided afterwards.
        seed (int): Seed. Defaults to 0.
        first (int): Number of the first image. Defaults to 0.

    Returns:
        Tensor: [M, C, H, W], float32.
    """
    (height, width), channels = size, len(mean)
    drawn = [_draw_leaves(seed, first + i, channels, height, width) for i in range(num_images)]
    place, colour, noise = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    y, x = torch.arange(height)[:, None], torch.arange(width)
    top = torch.zeros(num_images, height, width, dtype=torch.long)  # the ground is leaf 0
    for leaf in range(NUM_LEAVES):
        cy, cx, radius, stretch = place[:, leaf, :, None, None].unbind(1)
        inside = ((y - cy) * stretch) ** 2 + ((x - cx) / stretch) ** 2 < radius**2
        top.masked_fill_(inside, leaf + 1)
    index = top.flatten(1)[:, None].expand(-1, channels, -1)
    image = colour.gather(2, index).unflatten(2, (height, width)) + TEXTURE * noise
    return normalize(image, mean, std)


@torch.no_grad()
def white_noise(
    num_images: int,
    size: tuple[int, int],
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Images of noise alone, to compare :func:`dead_leaves` with; arguments and scale are the same."""
    generators = (image_generator(seed, number) for number in range(first, first + num_images))
    noise = [torch.randn(len(mean), *size, generator=generator) for generator in generators]
    return normalize(torch.stack(noise), mean, std)


def normalize(image: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Turn standard normal values into pixels of 127.5 +- 58 in [0, 255], and normalise these with mean and std [C]."""
    mean, std = (torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return ((127.5 + 58 * image).clamp(0, 255) - mean) / std


def image_generator(seed: int, number: int) -> torch.Generator:
    """The random generator that image number ``number`` of a seed is drawn with."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def _draw_leaves(seed: int, number: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """One image's [leaves, 4] y, x, radius and stretch, colours [C, 1 + leaves] (ground first) and noise [1, H, W]."""
    generator = image_generator(seed, number)
    extent = torch.tensor([height, width, 1, 1])
    place = torch.rand(NUM_LEAVES, 4, generator=generator)
    # Radii from a 16th to half of the shorter side, small ones more often.
    place[:, 2] = min(height, width) * (1 / 16 + place[:, 2] ** 3 * 7 / 16)
    place[:, 3] += 0.5
    place = place * extent
    grey = torch.randn(1, 1 + NUM_LEAVES, generator=generator)
    tint = torch.randn(channels, 1 + NUM_LEAVES, generator=generator)
    noise = torch.randn(1, height, width, generator=generator)
    return place, grey + 0.5 * tint, noise
