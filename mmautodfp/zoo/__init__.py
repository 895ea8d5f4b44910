"""Classifiers for CIFAR-10 and ImageNet, their data and metric, and the demo's digits: what the configs name."""

from .classifier import ImageClassifier
from .datasets import CIFAR10, ClassificationDataset, ImageFolder, SklearnDigits
from .digits import DIGIT_CLASSES, SPLITS, make_digits
from .metric import Accuracy
from .mobilenet import InvertedResidual, MobileNetV1, MobileNetV2
from .resnet import BasicBlock, CifarResNet, TorchvisionNet
from .vgg import VGG

__all__ = [
    'CIFAR10',
    'DIGIT_CLASSES',
    'SPLITS',
    'VGG',
    'Accuracy',
    'BasicBlock',
    'CifarResNet',
    'ClassificationDataset',
    'ImageClassifier',
    'ImageFolder',
    'InvertedResidual',
    'MobileNetV1',
    'MobileNetV2',
    'SklearnDigits',
    'TorchvisionNet',
    'make_digits',
]
