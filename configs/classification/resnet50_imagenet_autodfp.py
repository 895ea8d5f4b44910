"""ResNet-50 on ImageNet with torchvision's weights, 70% of its parameters."""

_base_ = '../_base_/imagenet.py'

model = dict(network=dict(type='mmautodfp.TorchvisionNet', name='resnet50'))
load_from = 'https://download.pytorch.org/models/resnet50-0676ba61.pth'
