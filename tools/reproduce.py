"""Measure the paper's tables on the weights and images that are there; rows without them are listed as such.

Uniform rows take seconds each. Searched rows take --episodes; a search that is there already is taken up again.
Table 5 is that of detectors, with further shares and our own rows; how long it may take is told first.

Example:
    python tools/reproduce.py --tables 5 --episodes 500 --seeds 5
    python tools/reproduce.py --tables 5 --detectors configs/bccd/faster_rcnn_bccd_autodfp.py
    python tools/reproduce.py --checkpoints checkpoints --cifar10 data/cifar10 --tables 2 --networks resnet56_cifar10
"""

from dataclasses import asdict
from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, read_options, told


@told('searches that were begun are kept: the same command goes on')
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('--checkpoints', type=Path, help='folder of the weights (default: where the configs say)')
    parser.add_argument('--cifar10', help="folder of torchvision's CIFAR10 or .npz file (default: as the configs say)")
    parser.add_argument('--imagenet', help='folder of the validation images (default: as the configs say)')
    parser.add_argument('--tables', nargs='+', help='some of 1 2 3 4 5 fig6 6 7 (default: all but 5)')
    parser.add_argument('--networks', nargs='+', help='such as resnet56_cifar10 (default: all)')
    parser.add_argument('--detectors', type=Path, nargs='+', help='configs for table 5 (default: the four of COCO)')
    parser.add_argument(
        '--shares', type=float, nargs='*', help="of the backbone's parameters in table 5 (default: 0.9 0.7 0.5 0.35)"
    )
    parser.add_argument(
        '--whole-shares', type=float, nargs='*', help="of the whole detector's FLOPs in table 5 (default: 0.7 0.5 0.35)"
    )
    parser.add_argument('--seeds', type=int, default=5, help='searches of each kind in table 5 (default: 5)')
    parser.add_argument('--episodes', type=int, help='episodes of each search (default: no searched rows)')
    parser.add_argument('--search-images', type=int, default=1000, help='images that reward a search (default: 1000)')
    parser.add_argument('--images', type=int, help='images for the uniform rows (default: all)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the searches (default: 0)')
    add_cfg_options(parser)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/reproduce'), help='folder of the result')
    args = parser.parse_args(argv)

    from mmautodfp.experiments.reproduce.detectors import DETECTORS, SHARES, DetectorSettings, reproduce_detectors
    from mmautodfp.experiments.reproduce.paper import ALL_TABLES, NETWORKS
    from mmautodfp.experiments.reproduce.report import write_report
    from mmautodfp.experiments.reproduce.run import Settings, reproduce, require_in_paper
    from mmautodfp.runs import find_config
    from mmautodfp.utils import AutoDFPError

    tables, options = args.tables or ALL_TABLES, read_options(args.cfg_options)
    others = tuple(table for table in tables if table != '5')
    require_in_paper(others, args.networks or ())
    if '5' in tables:
        configs = args.detectors or [find_config(f'{name}_autodfp') for name in DETECTORS]
        asked = dict(backbone=args.shares, model=args.whole_shares)
        shares = SHARES | {target: found for target, found in asked.items() if found is not None}
        settings = DetectorSettings(args.out, configs, args.checkpoints, args.episodes, args.seeds, shares, options)
        detectors = reproduce_detectors(settings)
        print(f'wrote {args.out}/table5.json and table5.md')
    if others:
        settings = Settings(
            out=args.out,
            checkpoints=args.checkpoints,
            cifar10=args.cifar10,
            imagenet=args.imagenet,
            tables=others,
            networks=tuple(args.networks or NETWORKS),
            episodes=args.episodes,
            search_images=args.search_images,
            num_images=args.images,
            seed=args.seed,
            cfg_options=options,
        )
        rows = reproduce(settings)
        paths = ('out', 'checkpoints', 'cifar10', 'imagenet')  # paths of this machine
        write_report(rows, args.out, {key: value for key, value in asdict(settings).items() if key not in paths})
        print(f'wrote {args.out}/reproduce.json and reproduce.md')
    if '5' in tables and all(one['reason'] for one in detectors):
        raise AutoDFPError(f'no detector of table 5 was measured to the end; of the first: {detectors[0]["reason"]}')


if __name__ == '__main__':
    main()
