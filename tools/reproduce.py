"""Measure the paper's tables on the weights and images that are there; rows without them are listed as such.

Uniform rows take seconds each. Searched rows take --episodes; a search that is there already is taken up again.

Example:
    python tools/reproduce.py --checkpoints checkpoints --cifar10 data/cifar10 --tables 2 --networks resnet56_cifar10
"""

from dataclasses import asdict
from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, read_options, told

CONFIGS = Path(__file__).resolve().parents[1] / 'configs/classification'


@told('searches that were begun are kept: the same command goes on')
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('--checkpoints', type=Path, help='folder of the weights (default: where the configs say)')
    parser.add_argument('--cifar10', help="folder of torchvision's CIFAR10 or .npz file (default: as the configs say)")
    parser.add_argument('--imagenet', help='folder of the validation images (default: as the configs say)')
    parser.add_argument('--tables', nargs='+', help='some of 1 2 3 4 fig6 6 7 (default: all)')
    parser.add_argument('--networks', nargs='+', help='such as resnet56_cifar10 (default: all)')
    parser.add_argument('--episodes', type=int, help='episodes of each search (default: no searched rows)')
    parser.add_argument('--search-images', type=int, default=1000, help='images that reward a search (default: 1000)')
    parser.add_argument('--images', type=int, help='images for the uniform rows (default: all)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the searches (default: 0)')
    add_cfg_options(parser)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/reproduce'), help='folder of the result')
    args = parser.parse_args(argv)

    from mmautodfp.experiments.reproduce import ALL_TABLES, NETWORKS, Settings, reproduce, write_report

    settings = Settings(
        out=args.out,
        configs=CONFIGS,
        checkpoints=args.checkpoints,
        cifar10=args.cifar10,
        imagenet=args.imagenet,
        tables=tuple(args.tables or ALL_TABLES),
        networks=tuple(args.networks or NETWORKS),
        episodes=args.episodes,
        search_images=args.search_images,
        num_images=args.images,
        seed=args.seed,
        cfg_options=read_options(args.cfg_options),
    )
    rows = reproduce(settings)
    paths = ('out', 'configs', 'checkpoints', 'cifar10', 'imagenet')  # of this machine
    write_report(rows, args.out, {key: value for key, value in asdict(settings).items() if key not in paths})
    print(f'wrote {args.out}/reproduce.json and reproduce.md')


if __name__ == '__main__':
    main()
