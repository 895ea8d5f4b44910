"""MobileNet-V1 on ImageNet, 70% of its parameters."""

_base_ = '../_base_/imagenet.py'

model = dict(network=dict(type='mmautodfp.MobileNetV1', num_classes=1000, stem_stride=2))
load_from = 'checkpoints/mobilenet_v1_imagenet.pth'
