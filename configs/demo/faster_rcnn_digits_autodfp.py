"""The demo: prune the digits detector to 70 % of its backbone's parameters."""

_base_ = ['./faster_rcnn_digits.py', '../_base_/autodfp.py']

load_from = 'configs/demo/faster_rcnn_digits.pth'

autodfp = dict(
    budget=dict(preserve_ratio=0.7),
    num_episodes=120,
    agent=dict(warmup_episodes=40, warmup='around_uniform'),
    reward=dict(num_images=128, batch_size=32),
)
