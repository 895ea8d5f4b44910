"""Measure what each part of the compensation is worth, on plans that need no search.

Figures that the output file holds already are kept; so an interrupted measurement goes on.

Example:
    python tools/ablation.py configs/demo/faster_rcnn_digits_autodfp.py --image-size 128 --out ablation.json
"""

from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, read_options, told


@told('figures that were finished are kept: the same command goes on')
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='config of a model with the search settings')
    parser.add_argument('checkpoint', nargs='?', help="trained weights (default: the config's load_from)")
    parser.add_argument(
        '--ratios', type=float, nargs='+', help='shares that stay (default: 0.9 0.8 0.7 0.5; whole: 0.7 0.5 0.35)'
    )
    parser.add_argument('--channels', action='store_true', help="shares of each unit's channels, not of parameters")
    parser.add_argument('--image-size', type=int, default=256, help='of the synthetic images (default: 256)')
    parser.add_argument('--num-images', type=int, default=64, help='synthetic images (default: 64)')
    parser.add_argument('--batch-size', type=int, help='of the synthetic images (default: 8)')
    parser.add_argument('--units-per-pass', type=int, default=1, help='of the full pass (default: 1)')
    parser.add_argument('--cost', action='store_true', help='instead, seconds and memory on random weights')
    parser.add_argument('--whole', action='store_true', help='instead, a whole detector at shares of its FLOPs')
    parser.add_argument('--only', default='', help='regular expression that the names of variants must match')
    parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
    add_cfg_options(parser)
    args = parser.parse_args(argv)

    from mmautodfp.experiments.ablation import VARIANTS, ablate
    from mmautodfp.experiments.bench import those_named
    from mmautodfp.experiments.benchmark_cost import measure_cost
    from mmautodfp.experiments.shares import WHOLE_SHARES, measure_shares
    from mmautodfp.utils.fileio import load_json, save_json

    options = read_options(args.cfg_options)
    images = dict(size=args.image_size, num_images=args.num_images)
    if args.batch_size is not None:
        images['batch_size'] = args.batch_size
    refinement = dict(units_per_pass=args.units_per_pass)
    if args.cost:
        result = measure_cost(args.config, dict(images=images, refinement=refinement), cfg_options=options)
        save_json(result, args.out)
        print(f'{result["seconds"]} s, {result["peak_memory_gb"]} GB')
        return

    def keep(result: dict, line: str) -> None:
        save_json(result, args.out)
        print(line, flush=True)

    known = load_json(args.out, 'the earlier result') if args.out.exists() else None
    common = dict(checkpoint=args.checkpoint, cfg_options=options, known=known, report=keep)
    if args.whole:
        measure_shares(args.config, 'model', args.ratios or WHOLE_SHARES, **common)
        return
    variants = those_named(VARIANTS, args.only, 'variants')
    settings = dict(of_channels=args.channels, images=images, refinement=refinement)
    ablate(args.config, args.ratios or (0.9, 0.8, 0.7, 0.5), variants, **settings, **common)


if __name__ == '__main__':
    main()
