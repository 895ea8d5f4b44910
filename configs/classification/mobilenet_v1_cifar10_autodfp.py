"""MobileNet-V1 on CIFAR-10, 40% of its parameters."""

_base_ = '../_base_/cifar10.py'

model = dict(
    network=dict(type='mmautodfp.MobileNetV1'),
)
load_from = 'checkpoints/mobilenet_v1_cifar10.pth'
autodfp = dict(budget=dict(preserve_ratio=0.4))
