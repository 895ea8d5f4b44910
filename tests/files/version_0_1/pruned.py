custom_hooks = []
default_hooks = dict(
    checkpoint=dict(interval=15, max_keep_ckpts=1, type='CheckpointHook'),
    logger=dict(interval=50, type='LoggerHook'))
default_scope = 'mmengine'
load_from = r'''{{ fileDirname }}/pruned.pth'''
max_epochs = 15
metainfo = dict(classes=(
    '0',
    '1',
    '2',
    '3',
    '4',
    '5',
    '6',
    '7',
    '8',
    '9',
))
model = dict(
    data_preprocessor=dict(
        mean=[
            77.8,
        ], std=[
            95.9,
        ], type='ImgDataPreprocessor'),
    network=dict(
        module=dict(
            channels=(
                24,
                48,
            ),
            image_size=8,
            in_channels=1,
            stages=(
                2,
                3,
            ),
            type='mmautodfp.VGG'),
        type='mmautodfp.Slim',
        widths=dict({
            'features.0': 15,
            'features.10': 29,
            'features.13': 29,
            'features.3': 15,
            'features.7': 29
        })),
    type='mmautodfp.ImageClassifier')
optim_wrapper = dict(
    optimizer=dict(lr=0.004, type='AdamW', weight_decay=0.05),
    type='OptimWrapper')
param_scheduler = [
    dict(by_epoch=False, eta_max=0.004, total_steps=300, type='OneCycleLR'),
]
randomness = dict(seed=0)
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=100,
    dataset=dict(split='test', type='mmautodfp.SklearnDigits'),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(type='mmautodfp.Accuracy')
train_cfg = dict(max_epochs=15, type='EpochBasedTrainLoop', val_interval=5)
train_dataloader = dict(
    batch_size=50,
    dataset=dict(shift=1, split='train', type='mmautodfp.SklearnDigits'),
    num_workers=0,
    sampler=dict(shuffle=True, type='DefaultSampler'))
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=100,
    dataset=dict(split='val', type='mmautodfp.SklearnDigits'),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(type='mmautodfp.Accuracy')
