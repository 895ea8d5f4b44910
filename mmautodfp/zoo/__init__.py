"""What the configs use besides MMDetection: classifiers, their data sets and metric, and two detection data sets."""

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
