"""The paper's figures (tables 1 to 4, 6 and 7, figure 6), as data."""

from collections.abc import Iterator
from dataclasses import dataclass

ALL_TABLES = ('1', '2', '3', '4', 'fig6', '6', '7')
# Our name -> title.
NETWORKS = {
    'vgg16_cifar10': 'VGG-16, CIFAR-10',
    'vgg19_cifar10': 'VGG-19, CIFAR-10',
    'resnet56_cifar10': 'ResNet-56, CIFAR-10',
    'resnet50_cifar10': 'ResNet-50, CIFAR-10',
    'mobilenet_v1_cifar10': 'MobileNet-V1, CIFAR-10',
    'mobilenet_v2_cifar10': 'MobileNet-V2, CIFAR-10',
    'resnet34_imagenet': 'ResNet-34, ImageNet',
    'resnet50_imagenet': 'ResNet-50, ImageNet',
    'resnet101_imagenet': 'ResNet-101, ImageNet',
    'mobilenet_v1_imagenet': 'MobileNet-V1, ImageNet',
}
DENSE = {
    'vgg16_cifar10': 93.70,
    'vgg19_cifar10': 93.90,
    'resnet56_cifar10': 93.88,
    'resnet50_cifar10': 95.00,
    'mobilenet_v1_cifar10': 86.49,
    'mobilenet_v2_cifar10': 85.48,
    'resnet34_imagenet': 73.31,
    'resnet50_imagenet': 76.13,
    'resnet101_imagenet': 77.31,
    'mobilenet_v1_imagenet': 72.03,
}
# Method -> title.
METHODS = {
    'dense': 'dense',
    'prune': 'uniform, pruned only',
    'merging': 'uniform, Neuron Merging',
    'search': 'searched, pruned only',
    'search+merging': 'searched, then Neuron Merging',
    'autodfp': 'AutoDFP',
}
SEARCHED = ('search', 'search+merging', 'autodfp')


@dataclass(frozen=True)
class Claim:
    """One number of the paper, or one point of its figure 6.

    Attributes:
        table (str): One of ``ALL_TABLES``.
        network (str): One of ``NETWORKS``.
        preserve_ratio (float): Share of the parameters that is kept.
        method (str): One of ``METHODS``.
        paper (float | None): The number; None where the paper only draws it.
        unit (str): '%' (top-1), 'ms' (inference of one image) or 'h' (3,000 episodes). Defaults to '%'.
        flops_ratio (float | None): Share of FLOPs that the paper reports with it. Defaults to None.
    """

    table: str
    network: str
    preserve_ratio: float
    method: str
    paper: float | None
    unit: str = '%'
    flops_ratio: float | None = None


# Preserve ratio -> accuracies in the order of the methods below.
_TABLE_1 = {
    0.5: (47.18, 26.81, 61.33, 78.22, 84.14),
    0.4: (30.40, 20.40, 41.76, 56.80, 77.71),
    0.3: (11.76, 11.75, 13.02, 53.57, 60.49),
}
_TABLE_1_METHODS = ('prune', 'merging', 'search', 'search+merging', 'autodfp')
_TABLE_2_METHODS = ('prune', 'merging', 'autodfp')
_TABLE_2 = {
    'vgg16_cifar10': {0.4: (89.14, 93.16, 94.34), 0.3: (35.83, 65.77, 92.94), 0.2: (18.15, 40.26, 90.00)},
    'resnet56_cifar10': {0.7: (76.95, 85.22, 88.15), 0.6: (46.44, 76.56, 85.48), 0.5: (24.34, 56.18, 64.29)},
    'mobilenet_v1_cifar10': {0.4: (56.92, 65.78, 86.49), 0.3: (31.36, 49.87, 86.49), 0.2: (13.90, 37.23, 86.50)},
}
# Network -> preserved parameters, preserved FLOPs, accuracy.
_TABLE_3 = {
    'vgg16_cifar10': (0.209, 0.554, 92.88),
    'vgg19_cifar10': (0.232, 0.581, 93.39),
    'resnet50_cifar10': (0.378, 0.680, 92.42),
}
_TABLE_4 = {
    'resnet34_imagenet': {0.9: (63.71, 66.95, 70.17), 0.8: (42.80, 55.54, 62.43), 0.7: (17.06, 39.28, 58.47)},
    'resnet50_imagenet': {0.9: (62.17, 68.70, 73.77), 0.8: (31.35, 51.99, 60.30), 0.7: (4.28, 24.63, 41.83)},
    'resnet101_imagenet': {0.9: (68.90, 72.29, 74.17), 0.8: (45.77, 61.53, 65.19), 0.7: (10.34, 37.51, 45.73)},
    'mobilenet_v1_imagenet': {0.9: (15.69, 48.45, 67.43), 0.8: (1.27, 15.56, 58.73), 0.7: (0.52, 1.84, 44.23)},
}
_FIGURE_6_CIFAR = ('vgg16_cifar10', 'resnet56_cifar10', 'mobilenet_v1_cifar10', 'mobilenet_v2_cifar10')
_FIGURE_6 = {
    **dict.fromkeys(_FIGURE_6_CIFAR, (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
    **dict.fromkeys(('resnet34_imagenet', 'resnet50_imagenet', 'resnet101_imagenet'), (0.9, 0.8, 0.7)),
}
# Milliseconds: pruned only, AutoDFP.
_TABLE_7 = {
    'vgg16_cifar10': {0.4: (1.53, 1.44), 0.3: (1.65, 1.67), 0.2: (1.61, 1.54)},
    'resnet56_cifar10': {0.7: (5.92, 5.62), 0.6: (5.82, 5.26), 0.5: (5.97, 5.65)},
    'mobilenet_v1_cifar10': {0.4: (2.42, 2.54), 0.3: (2.49, 2.47), 0.2: (2.53, 2.64)},
}


def claims(tables: tuple[str, ...] = ALL_TABLES, networks: tuple[str, ...] = tuple(NETWORKS)) -> list[Claim]:
    """The numbers of some tables for some networks, in the paper's order, dense models first."""
    found = [claim for claim in _all_claims() if claim.table in tables and claim.network in networks]
    used = dict.fromkeys((claim.table, claim.network) for claim in found if claim.table in '1234')
    dense = [Claim(table, network, 1.0, 'dense', DENSE[network]) for table, network in used]
    return sorted(dense + found, key=lambda claim: ALL_TABLES.index(claim.table))


def _all_claims() -> Iterator[Claim]:
    for ratio, values in _TABLE_1.items():
        for method, value in zip(_TABLE_1_METHODS, values, strict=True):
            yield Claim('1', 'mobilenet_v2_cifar10', ratio, method, value)
    for table, content in (('2', _TABLE_2), ('4', _TABLE_4)):
        for network, ratios in content.items():
            for ratio, values in ratios.items():
                for method, value in zip(_TABLE_2_METHODS, values, strict=True):
                    yield Claim(table, network, ratio, method, value)
    for network, (ratio, flops, value) in _TABLE_3.items():
        yield Claim('3', network, ratio, 'autodfp', value, flops_ratio=flops)
    for network, ratios in _FIGURE_6.items():
        for ratio in ratios:
            for method in _TABLE_2_METHODS:
                yield Claim('fig6', network, ratio, method, None)
    yield Claim('6', 'resnet50_imagenet', 0.7, 'autodfp', 10.2, unit='h')
    for network, ratios in _TABLE_7.items():
        for ratio, values in ratios.items():
            for method, value in zip(('prune', 'autodfp'), values, strict=True):
                yield Claim('7', network, ratio, method, value, unit='ms')
