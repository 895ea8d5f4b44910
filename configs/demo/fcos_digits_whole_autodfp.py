"""The demo with FCOS as a whole: half of its FLOPs."""

_base_ = './fcos_digits_autodfp.py'

autodfp = dict(
    target='model',
    budget=dict(type='FlopBudget', preserve_ratio=0.5, scope='model'),
    reconstructor=dict(type='SyntheticLeastSquares', images=dict(num_images=256, size=128, batch_size=32)),
)
