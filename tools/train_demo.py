"""Train a demo detector or classifier from scratch and write the checkpoint that ships with the repository.

The digits are made if they are not there; tools/make_bccd.py lays out the blood cells.

Example:
    python tools/train_demo.py configs/demo/faster_rcnn_digits.py
    python tools/train_demo.py configs/bccd/faster_rcnn_bccd.py
    python tools/train_demo.py configs/bccd/faster_rcnn_bccd.py --resume
"""

import hashlib
import json
import time
from pathlib import Path

from mmautodfp.utils.command_line import new_parser, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='such as configs/demo/faster_rcnn_digits.py')
    parser.add_argument('--work-dir', help='logs and checkpoints of the training (default: work_dirs/<config name>)')
    parser.add_argument('--out', type=Path, help='checkpoint to write (default: beside the config, ending in .pth)')
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on after the last epoch that --work-dir has; log and seconds are of the rest',
    )
    parser.add_argument(
        '--bfloat16',
        action='store_true',
        help='train backbone and neck in bfloat16, on processors that have it in about 0.6 of the time',
    )
    args = parser.parse_args(argv)

    import torch
    from mmengine.runner import Runner
    from mmengine.utils.dl_utils import collect_env

    from mmautodfp.runs import find_config, load_config
    from mmautodfp.utils import AutoDFPError
    from mmautodfp.zoo import DIGIT_CLASSES, make_digits

    config = find_config(args.config)
    cfg = load_config(config, args.work_dir)
    missing = [name for name in ('metainfo', 'max_epochs', 'randomness', 'train_dataloader') if name not in cfg]
    if missing:
        raise AutoDFPError(
            f'{args.config} was to be trained, but it has no {" and no ".join(missing)}; name a config such as '
            'configs/demo/faster_rcnn_digits.py'
        )
    out = args.out or config.with_suffix('.pth')
    if 'data_root' in cfg and tuple(cfg.metainfo['classes']) == DIGIT_CLASSES:
        make_digits(cfg.data_root)  # the detectors'; the classifiers' come with scikit-learn
    cfg.resume = args.resume
    runner = Runner.from_cfg(cfg)
    if args.bfloat16:
        train_in_bfloat16(runner.model)
    start = time.time()
    runner.train()
    seconds = time.time() - start

    # Half the size; the figures below are measured with the weights as they are shipped.
    state = {key: t.half() if t.is_floating_point() else t for key, t in runner.model.state_dict().items()}
    runner.model.load_state_dict(state)
    figures = dict(val=runner.val(), test=runner.test())
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=cfg.metainfo['classes']))), out)
    env = collect_env()
    record = dict(
        sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        bytes=out.stat().st_size,
        config=config.as_posix(),
        **figures,
        epochs=cfg.max_epochs,
        seed=cfg.randomness['seed'],
        seconds=round(seconds),
        bfloat16=args.bfloat16,
        versions={key: env[key] for key in ('PyTorch', 'TorchVision', 'OpenCV', 'MMEngine')},
    )
    out.with_suffix('.json').write_text(json.dumps(record, indent=2) + '\n')
    scalars = next(Path(runner.log_dir).glob('vis_data/scalars.json'))
    out.with_suffix('.log').write_text(scalars.read_text())
    print(f'wrote {out} ({out.stat().st_size / 1e6:.1f} MB) and its record and log beside it')


def train_in_bfloat16(detector) -> None:
    """Let a detector's backbone and neck compute in bfloat16 while it trains; weights and heads stay in float32.

    MMEngine's AmpOptimWrapper needs a GPU, and mmcv's RoIAlign does not take bfloat16.
    """
    import torch

    from mmautodfp.utils import AutoDFPError

    extract_feat = getattr(detector, 'extract_feat', None)
    if extract_feat is None:
        raise AutoDFPError(f'--bfloat16 is for detectors, but the config has a {type(detector).__name__}; leave it out')

    def extract_feat_in_bfloat16(batch_inputs):
        batch_inputs = batch_inputs.to(memory_format=torch.channels_last)
        with torch.autocast('cpu', torch.bfloat16, enabled=detector.training):
            features = extract_feat(batch_inputs)
        return tuple(feature.float().contiguous() for feature in features)  # as RoIAlign needs them

    detector.extract_feat = extract_feat_in_bfloat16


if __name__ == '__main__':
    main()
