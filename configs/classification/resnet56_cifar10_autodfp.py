"""ResNet-56 on CIFAR-10, 50% of its parameters."""

_base_ = '../_base_/cifar10.py'

model = dict(
    network=dict(type='mmautodfp.CifarResNet', depth=56),
    data_preprocessor=dict(std=[51.5865, 50.847, 51.255]),
)
load_from = 'checkpoints/resnet56_cifar10.pth.tar'
autodfp = dict(budget=dict(preserve_ratio=0.5), clustering=dict(eps=1.0, min_samples=5))
