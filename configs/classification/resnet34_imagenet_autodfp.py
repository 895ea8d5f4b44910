"""ResNet-34 on ImageNet with torchvision's weights, 70% of its parameters."""

_base_ = '../_base_/imagenet.py'

model = dict(network=dict(type='mmautodfp.TorchvisionNet', name='resnet34'))
load_from = 'https://download.pytorch.org/models/resnet34-b627a593.pth'
