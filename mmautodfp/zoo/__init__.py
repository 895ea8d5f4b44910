"""Classifiers for CIFAR-10 and ImageNet, their data and metric, the demo's digits and BCCD, worse photographs: what
configs name.
"""

from .bccd import BCCD_CLASSES, make_bccd
from .classifier import ImageClassifier
from .datasets import CIFAR10, ClassificationDataset, ImageFolder, SklearnDigits
from .degrade import Degrade
from .digits import DIGIT_CLASSES, SPLITS, make_digits
from .metric import Accuracy
from .mobilenet import MobileNetV1, MobileNetV2
from .resnet import BasicBlock, CifarResNet, TorchvisionNet
from .vgg import VGG

__all__ = [
    'BCCD_CLASSES',
    'CIFAR10',
    'DIGIT_CLASSES',
    'SPLITS',
    'VGG',
    'Accuracy',
    'BasicBlock',
    'CifarResNet',
    'ClassificationDataset',
    'Degrade',
    'ImageClassifier',
    'ImageFolder',
    'MobileNetV1',
    'MobileNetV2',
    'SklearnDigits',
    'TorchvisionNet',
    'make_bccd',
    'make_digits',
]
