"""The search as the demos run it: 120 episodes on 128 small images, a few minutes on two cores."""

_base_ = './autodfp.py'

autodfp = dict(
    budget=dict(preserve_ratio=0.7),
    num_episodes=120,
    agent=dict(warmup_episodes=40, warmup='around_uniform'),
    reward=dict(num_images=128, batch_size=16),
)
