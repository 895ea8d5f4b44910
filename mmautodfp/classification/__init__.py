"""Classifiers: networks for CIFAR-10 and ImageNet, their data and their metric, wired for MMEngine's Runner."""

from .classifier import ImageClassifier
from .datasets import CIFAR10, ClassificationDataset, ImageFolder, SklearnDigits
from .metric import Accuracy
from .mobilenet import InvertedResidual, MobileNetV1, MobileNetV2
from .resnet import BasicBlock, CifarResNet, TorchvisionNet
from .vgg import VGG

__all__ = [
    'CIFAR10',
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
]
