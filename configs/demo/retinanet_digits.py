"""RetinaNet, ResNet-50 at a quarter of its width, FPN with 64 channels, on the digits.

Trained from scratch with `python tools/train_demo.py configs/demo/retinanet_digits.py`.
"""

_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/digits_detection.py']

# Digits are 10 to 60 pixels wide: anchors of 16 pixels and more.
model = dict(
    backbone=dict(base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(octave_base_scale=2, ratios=[1.0, 1.5, 2.5]),
    ),
    test_cfg=dict(nms_pre=256, max_per_img=20),
)
