"""RetinaNet, ResNet-50 at a quarter of its width, FPN with 64 channels, on photographs of blood cells.

Trained from scratch with `python tools/train_demo.py configs/bccd/retinanet_bccd.py`.
"""

_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/bccd_detection.py']

# Cells are 10 to 150 pixels wide and about as high: anchors of 16 pixels and more. A photograph has 30 cells at most.
model = dict(
    backbone=dict(base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    bbox_head=dict(
        num_classes=3,
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(octave_base_scale=2, ratios=[0.7, 1.0, 1.4]),
    ),
    test_cfg=dict(nms_pre=256, max_per_img=50),
)
