"""ImageNet's validation set under data/imagenet/val, one folder a class: some of it rewards a search."""

_base_ = './classification.py'

data_root = 'data/imagenet/val'
model = dict(
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmautodfp.ImageFolder', data_root=data_root),
)
test_dataloader = val_dataloader
autodfp = dict(budget=dict(preserve_ratio=0.7), reward=dict(num_images=3000, metric='probability', precision='auto'))
