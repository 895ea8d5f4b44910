"""What the classifiers' configs share: the Runner's loops, and a search that is rewarded with top-1 accuracy."""

_base_ = './autodfp.py'

default_scope = 'mmengine'
model = dict(type='mmautodfp.ImageClassifier')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
val_evaluator = dict(type='mmautodfp.Accuracy')
test_evaluator = dict(type='mmautodfp.Accuracy')
default_hooks = dict(logger=dict(type='LoggerHook', interval=50))

autodfp = dict(
    target='network',
    reward=dict(_delete_=True, type='AccuracyReward', num_images=1000, seed=0),
)
