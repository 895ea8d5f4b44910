"""Faster R-CNN with a whole ResNet-50, its FPN and heads as wide as mmdet's own, on photographs of blood cells.

Its checkpoint is too large to come with the project. It is made with
`python tools/train_demo.py configs/bccd/faster_rcnn_r50_bccd.py --bfloat16 --out data/faster_rcnn_r50_bccd.pth`.
"""

_base_ = './faster_rcnn_bccd.py'

model = dict(
    backbone=dict(base_channels=64),
    neck=dict(in_channels=[256, 512, 1024, 2048], out_channels=256),
    rpn_head=dict(in_channels=256, feat_channels=256),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=256),
        bbox_head=dict(in_channels=256, fc_out_channels=1024),
    ),
)
# Four times as wide as ./faster_rcnn_bccd.py, a quarter of its rate.
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, convert_to_iter_based=True),
]
