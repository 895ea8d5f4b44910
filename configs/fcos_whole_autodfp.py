"""FCOS as a whole, backbone, neck and heads, within half of its FLOPs: least squares, and a search on top."""

_base_ = './fcos_autodfp.py'

autodfp = dict(
    target='model',
    budget=dict(type='FlopBudget', preserve_ratio=0.5, scope='model'),
    reconstructor=dict(type='SyntheticLeastSquares', images=dict(num_images=64, size=256)),
)
