"""Random layers, and delivery matrices as loops written from the equations."""

import math

import torch

from mmautodfp.kernels import BatchNormStats, ChannelSimilarity, rank_channels


def random_layer(shape, dtype=torch.float64, seed=0):
    """A weight and a BatchNorm with gammas of either sign."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *size: torch.rand(*size, generator=generator, dtype=torch.float64)
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)
    n = shape[0]
    gamma = (0.2 + rand(n)) * torch.where(rand(n) < 0.2, -1.0, 1.0)
    weight = randn(*shape) * (0.5 + rand(n)).view(n, *[1] * (len(shape) - 1))
    tensors = [tensor.to(dtype) for tensor in (gamma, randn(n), randn(n), 0.1 + rand(n))]
    return weight.to(dtype), BatchNormStats(*tensors, eps=1e-3)


def largest(weight, num_keep):
    """[K], ascending: the channels with the largest l2 norms."""
    return rank_channels(weight)[:num_keep].sort().values


def delivery_of(weight, bn, *settings, **more):
    return ChannelSimilarity.from_weight(weight, bn).delivery(*settings, **more)


def columns(bn):
    return [tensor.tolist() for tensor in (bn.weight, bn.bias, bn.mean, bn.var)]


def normalized(values, how):
    low = min(values) if how == 'minmax' else 0.0
    span = max(values) - low
    return [(value - low) / span if span else 0.0 for value in values]


def loop_pick(distances, penalties, lam, how):
    """Eq. 16: the position of the first candidate with the least score."""
    scores = [lam * d + (1 - lam) * b for d, b in zip(distances, normalized(penalties, how), strict=True)]
    return scores.index(min(scores))


def loop_delivery(weight, bn, keep, lam, how, min_cosine=None, dead=()):
    """Eqs. 12, 16 and 18, channel by channel."""
    gamma, beta, mu, var = columns(bn)
    sigma = [math.sqrt(v + bn.eps) for v in var]
    norm = [float(row.norm()) for row in weight]
    delivery = torch.zeros(len(weight), len(keep), dtype=torch.float64)
    candidates = [r for r in keep if r not in dead]
    for p in range(len(weight)):
        if p in keep:
            delivery[p, keep.index(p)] = 1
        elif p not in dead and candidates:
            distances, biases, scales = [], [], []
            for r in candidates:
                s = norm[p] / norm[r] * (sigma[r] / gamma[r]) * (gamma[p] / sigma[p])
                b = s * (gamma[r] * mu[r] / sigma[r] - beta[r]) - gamma[p] * mu[p] / sigma[p] + beta[p]
                distances.append(1 - float((weight[p] * weight[r]).sum()) / norm[p] / norm[r])
                biases.append(abs(b))
                scales.append(s)
            best = loop_pick(distances, biases, lam, how)
            if min_cosine is None or 1 - distances[best] >= min_cosine:
                delivery[p, keep.index(candidates[best])] = scales[best]
    return delivery


def loop_neuron_merging(weight, bn, keep, lam, min_cosine):
    """Neuron Merging as method.md describes its released form, channel by channel."""
    gamma, beta, mu, var = columns(bn)
    norm = [float(row.norm()) for row in weight]
    delivery = torch.zeros(len(weight), len(keep), dtype=torch.float64)
    for p in range(len(weight)):
        if p in keep:
            delivery[p, keep.index(p)] = 1
            continue
        distances, biases, scales = [], [], []
        for r in keep:
            n = norm[p] / norm[r]
            scale = n * (gamma[r] / gamma[p]) * (var[p] / var[r])
            constant = gamma[r] / var[r] * (n * (mu[p] - var[p] * beta[p] / gamma[p]) - mu[r]) + beta[r]
            distances.append(1 - float((weight[p] * weight[r]).sum()) / norm[p] / norm[r])
            biases.append(abs(constant) / scale)
            scales.append(scale)
        best = loop_pick(distances, biases, lam, 'minmax')
        if 1 - distances[best] >= min_cosine:
            delivery[p, best] = scales[best]
    return delivery
