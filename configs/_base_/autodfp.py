"""Settings of the search, shared by the detectors. Values are the paper's (4.3.4) unless a comment says why not."""

autodfp = dict(
    type='mmautodfp.AutoDFPHook',
    target='backbone',  # what is pruned, by its path in the model
    budget=dict(type='ParamBudget', preserve_ratio=0.9, scope='module'),
    p_min=0.2,
    p_max=1.0,
    num_episodes=5000,
    agent=dict(
        type='SAC',
        hidden_sizes=(256, 256),
        actor_lr=1e-3,
        critic_lr=1e-3,
        alpha_lr=3e-4,
        gamma=1.0,
        tau=0.01,
        batch_size=128,
        buffer_episodes=100,
        warmup_episodes=200,
        credit='monte_carlo',  # the paper's is 'td', which only teaches the last group; see SACConfig
    ),
    reconstructor=dict(type='SimilarityReconstructor'),
    # 'auto': bfloat16 or float16 where the device is faster in it; ranks plans as float32 does (docs/measurements.md)
    reward=dict(type='CocoReward', num_images=500, seed=0, precision='auto'),
    clustering=dict(eps=None, min_samples=5),  # the paper's 0.5, 0.3 or 1 find no clusters, or one
    bias_threshold=0.5,  # the paper does not tell it
    # Uniform plans played first, after an allocated one if there is any; the paper has none.
    opening_lams=(0.0, 0.5, 1.0),
    compare=True,
    log_interval=10,
    seed=0,
)
