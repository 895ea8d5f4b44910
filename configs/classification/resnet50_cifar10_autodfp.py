"""ResNet-50 on CIFAR-10, 38% of its parameters."""

_base_ = '../_base_/cifar10.py'

model = dict(
    network=dict(type='mmautodfp.TorchvisionNet', name='resnet50', num_classes=10, small_images=True),
)
load_from = 'checkpoints/resnet50_cifar10.pth'
autodfp = dict(budget=dict(preserve_ratio=0.378))
