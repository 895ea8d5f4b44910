"""The 1,797 handwritten digits of scikit-learn, 8x8 pixels, 10 classes; nothing is downloaded.

val rewards a search, test is what gets reported; the three splits are disjoint.
"""

_base_ = './classification.py'

metainfo = dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))
model = dict(data_preprocessor=dict(type='ImgDataPreprocessor', mean=[77.8], std=[95.9]))
train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmautodfp.SklearnDigits', split='train', shift=1),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmautodfp.SklearnDigits', split='val'),
)
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmautodfp.SklearnDigits', split='test'),
)

max_epochs = 15
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05))
param_scheduler = [dict(type='OneCycleLR', eta_max=4e-3, total_steps=max_epochs * 20, by_epoch=False)]
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=max_epochs, max_keep_ckpts=1))

autodfp = dict(
    budget=dict(preserve_ratio=0.4),
    num_episodes=100,
    agent=dict(warmup_episodes=40, warmup='around_uniform'),
    reward=dict(num_images=None),
)
