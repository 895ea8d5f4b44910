"""VGG-19 with BatchNorm on CIFAR-10, 23% of its parameters."""

_base_ = '../_base_/cifar10.py'

model = dict(
    network=dict(type='mmautodfp.VGG', depth=19),
)
load_from = 'checkpoints/vgg19_cifar10.pth'
autodfp = dict(budget=dict(preserve_ratio=0.232), clustering=dict(eps=0.3, min_samples=5))
