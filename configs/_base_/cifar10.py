"""CIFAR-10's test set: some of it rewards a search, the rest is what gets reported.

data_root is the folder of torchvision's CIFAR10, which fetches what it lacks, or an .npz file.
"""

_base_ = './classification.py'

data_root = 'data/cifar10'
model = dict(
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[125.307, 122.961, 113.8575], std=[62.985, 62.0925, 66.708]
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmautodfp.CIFAR10', data_root=data_root),
)
test_dataloader = val_dataloader
autodfp = dict(
    # The paper's reward is 'top1'; docs/reproduction.md has both side by side.
    reward=dict(metric='probability', precision='auto', batch_size=100),
)
