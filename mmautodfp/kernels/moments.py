"""Streaming moments of channels."""

import torch
from torch import Tensor

# Largest number of elements in a matrix product: bounds its memory, and the rounding of sums in single precision.
CHUNK = 1 << 23
# Largest number of channels, evenly spread, that a tap correlation is averaged over.
CORRELATED = 256


class Moments:
    """Means and second moments of samples that come in batches and are not kept.

    Batches are centred on their own means and merged (Chan et al. 1979) in float64, so that neither many samples nor a
    mean far from zero cost precision.

    Args:
        num_inputs (int): D, length of a sample x.
        num_targets (int): T, length of a sample y that comes with each x; of y only the variances and the covariance
            with x are kept. Defaults to 0.
        device (torch.device | str | None): Device of the moments and the samples. Defaults to None: torch's default.

    Attributes:
        count (float): Number of samples so far, or the sum of their weights.
        mean (Tensor): [D], mean of x, float64.
        target_mean (Tensor): [T], mean of y, float64.
    """

    def __init__(self, num_inputs: int, num_targets: int = 0, device: torch.device | str | None = None):
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)
        self.count = 0.0
        self.mean, self.target_mean = zeros(num_inputs), zeros(num_targets)
        self._scatter, self._cross = zeros(num_inputs, num_inputs), zeros(num_targets, num_inputs)
        self._target_scatter = zeros(num_targets)

    @torch.no_grad()
    def update(self, inputs: Tensor, targets: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Take in samples.

        Args:
            inputs (Tensor): [S, D].
            targets (Tensor | None): [S, T]. Defaults to None, for T = 0.
            weights (Tensor | None): [S], above 0, how many samples each one counts for. Defaults to None: one.
        """
        if targets is None:
            targets = inputs.new_zeros(len(inputs), 0)
        rows = max(64, CHUNK // (inputs.shape[1] + targets.shape[1]))
        for start in range(0, len(inputs), rows):
            piece = slice(start, start + rows)
            self._merge(inputs[piece], targets[piece], None if weights is None else weights[piece])

    def _merge(self, x: Tensor, y: Tensor, weights: Tensor | None) -> None:
        if weights is None:
            count = len(x)
            x_mean, y_mean = (part.mean(0, dtype=torch.float64) for part in (x, y))
        else:
            count = float(weights.sum(dtype=torch.float64))
            x_mean, y_mean = (weights.double() @ part.double() / count for part in (x, y))
        x, y = x - x_mean.to(x.dtype), y - y_mean.to(y.dtype)
        if weights is not None:
            x, y = (part * weights.sqrt()[:, None] for part in (x, y))
        total = self.count + count
        step, target_step = x_mean - self.mean, y_mean - self.target_mean
        weight = self.count * count / total
        self._scatter += (x.T @ x).double() + weight * torch.outer(step, step)
        self._cross += (y.T @ x).double() + weight * torch.outer(target_step, step)
        self._target_scatter += y.pow(2).sum(0, dtype=torch.float64) + weight * target_step**2
        self.mean += step * (count / total)
        self.target_mean += target_step * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """[D, D], of x, divided by the number of samples."""
        return self._scatter / (self.count or 1)

    @property
    def cross_covariance(self) -> Tensor:
        """[T, D], of y with x."""
        return self._cross / (self.count or 1)

    @property
    def target_variance(self) -> Tensor:
        """[T], of y."""
        return self._target_scatter / (self.count or 1)


class TapCorrelation:
    """Correlation of a convolution's inputs at the taps of its kernel, averaged over the channels.

    With the channels' covariance C it approximates the covariance of all inputs of the convolution, which would have
    (channels * taps)^2 entries: ``Cov[(n, s), (m, t)]`` is taken as ``C[n, m] * matrix[s, t]``.

    Args:
        kernel (tuple[int, int]): Height and width of the kernel.
        dilation (tuple[int, int]): Distance of neighbouring taps. Defaults to (1, 1).
    """

    def __init__(self, kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)):
        self.kernel, self.dilation = kernel, dilation
        height, width = kernel
        lags = ((dy, dx) for dy in range(height) for dx in range(1 - width, width))
        self._lags = {lag: [0.0, 0.0] for lag in lags if lag > (0, 0)}  # the opposite lags have the same correlation

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in an input [B, N, H, W] of the convolution."""
        x = x[:, :: -(-x.shape[1] // CORRELATED)]
        x = x - x.mean((0, 2, 3), keepdim=True)
        energy = (x * x).sum((0, 1)).double()
        height, width = x.shape[2:]
        for (dy, dx), sums in self._lags.items():
            down, right = dy * self.dilation[0], dx * self.dilation[1]
            if down < height and abs(right) < width:
                here = (..., slice(height - down), slice(max(0, -right), width - max(0, right)))
                there = (..., slice(down, None), slice(max(0, right), width - max(0, -right)))
                sums[0] += (x[here] * x[there]).sum().item()
                sums[1] += (energy[here].sum() + energy[there].sum()).item() / 2

    @property
    def matrix(self) -> Tensor:
        """[taps, taps], float64, ones on its diagonal."""
        taps = [(y, x) for y in range(self.kernel[0]) for x in range(self.kernel[1])]
        share = {lag: product / energy if energy > 0 else 0.0 for lag, (product, energy) in self._lags.items()}
        share[0, 0] = 1.0
        rows = [[share[max((ty - sy, tx - sx), (sy - ty, sx - tx))] for ty, tx in taps] for sy, sx in taps]
        return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def output_variance(weight: Tensor, covariance: Tensor, taps: Tensor) -> Tensor:
    """Variance of a layer's outputs, [M], float64.

    Args:
        weight (Tensor): [M, N, taps].
        covariance (Tensor): [N, N], of the channels that the layer reads.
        taps (Tensor): [taps, taps], from :class:`TapCorrelation`.
    """
    weight, covariance, taps = (part.float() for part in (weight, covariance, taps))
    spread = weight @ taps
    read = (covariance @ weight.transpose(0, 1).flatten(1)).unflatten(1, (len(weight), -1))  # as one matrix product
    return torch.einsum('nmt,mnt->m', read, spread).clamp_min(0).double()
