"""VGG-16 with BatchNorm on CIFAR-10, 40% of its parameters."""

_base_ = '../_base_/cifar10.py'

model = dict(
    network=dict(type='mmautodfp.VGG', depth=16),
)
load_from = 'checkpoints/vgg16_cifar10.pth'
autodfp = dict(budget=dict(preserve_ratio=0.4), clustering=dict(eps=0.3, min_samples=5))
