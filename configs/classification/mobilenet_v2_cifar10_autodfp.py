"""MobileNet-V2 on CIFAR-10, 50% of its parameters."""

_base_ = '../_base_/cifar10.py'

model = dict(
    network=dict(type='mmautodfp.MobileNetV2'),
)
load_from = 'checkpoints/mobilenet_v2_cifar10.pth'
autodfp = dict(budget=dict(preserve_ratio=0.5))
