"""ResNet-101 on ImageNet with torchvision's weights, 70% of its parameters."""

_base_ = '../_base_/imagenet.py'

model = dict(network=dict(type='mmautodfp.TorchvisionNet', name='resnet101'))
load_from = 'https://download.pytorch.org/models/resnet101-63fe2227.pth'
