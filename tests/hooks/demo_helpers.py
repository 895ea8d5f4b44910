"""What the hook's tests share."""

import json
from pathlib import Path

from mmengine.runner import Runner

from mmautodfp.utils.registry import HOOKS, build

CONFIG = 'configs/demo/faster_rcnn_digits_autodfp.py'
CHECKPOINT = 'configs/demo/faster_rcnn_digits.pth'
CLASSIFIER = 'configs/demo/vgg_digits_autodfp.py'
# Of the classifier, for a run of seconds.
QUICK = {
    'autodfp.agent.warmup_episodes': 6,
    'autodfp.reward.num_images': 50,
    'autodfp.compare': False,
    'autodfp.report': False,
}


def read(path: Path) -> dict:
    """A JSON file's content."""
    return json.loads(path.read_text())


def prepared_hook(cfg, **settings):
    """A hook that is ready to search with the demo's detector, and its runner."""
    cfg.load_from = CHECKPOINT
    hook = build(HOOKS, cfg.autodfp.to_dict() | settings)
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    hook.prepare(runner)
    return hook, runner
