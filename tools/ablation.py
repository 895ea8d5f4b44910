"""Measure what each part of the compensation is worth, on plans that need no search.

Figures that the output file holds already are kept; so an interrupted measurement goes on.

Example:
    python tools/ablation.py configs/demo/faster_rcnn_digits_autodfp.py --image-size 128 --out ablation.json
"""

from argparse import SUPPRESS
from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, option_of, read_arguments, told

#: What can be measured instead, and the options that it does not take.
OTHERS = dict(
    cost=('checkpoint', 'ratios', 'channels', 'only', 'whole'),
    whole=('channels', 'image_size', 'num_images', 'batch_size'),
)


@told('figures that were finished are kept: the same command goes on')
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.argument_default = SUPPRESS  # options that are not given are left out
    parser.add_argument('config', help='config of a model with the search settings')
    parser.add_argument('checkpoint', nargs='?', help="trained weights (default: the config's load_from)")
    parser.add_argument(
        '--ratios', type=float, nargs='+', help='shares that stay (default: 0.9 0.8 0.7 0.5; whole: 0.7 0.5 0.35)'
    )
    parser.add_argument('--channels', action='store_true', help="shares of each group's channels, not of parameters")
    parser.add_argument('--image-size', type=int, help="of the synthetic images (default: 256; cost: the config's)")
    parser.add_argument('--num-images', type=int, help="synthetic images (default: 64; cost: the config's)")
    parser.add_argument('--batch-size', type=int, help="of the synthetic images (default: 8; cost: the config's)")
    parser.add_argument('--cost', action='store_true', help='instead, seconds and memory on random weights')
    parser.add_argument('--whole', action='store_true', help='instead, a whole detector at shares of its FLOPs')
    parser.add_argument('--only', help='regular expression that the names of variants must match')
    parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
    add_cfg_options(parser)
    given = read_arguments(parser, argv)
    for other, foreign in OTHERS.items():
        for name in foreign:
            if other in given and name in given:
                parser.error(f'--{other} has no {name if name == "checkpoint" else option_of(name)}')

    from mmautodfp.experiments.ablation import ablate
    from mmautodfp.experiments.benchmark_cost import measure_cost
    from mmautodfp.experiments.shares import WHOLE_SHARES, measure_shares
    from mmautodfp.utils.fileio import earlier_result, save_json

    config, out, options = given['config'], given['out'], given['cfg_options']
    names = dict(image_size='size', num_images='num_images', batch_size='batch_size')
    images = {name: given[option] for option, name in names.items() if option in given}
    if 'cost' in given:
        result = measure_cost(config, images, cfg_options=options)
        save_json(result, out)
        print(f'{result["seconds"]} s, {result["peak_memory_gb"]} GB')
        return

    def keep(result: dict, line: str) -> None:
        save_json(result, out)
        print(line, flush=True)

    common = dict(checkpoint=given.get('checkpoint'), cfg_options=options, known=earlier_result(out), report=keep)
    common['only'] = given.get('only', '')
    if 'whole' in given:
        measure_shares(config, 'model', given.get('ratios', WHOLE_SHARES), **common)
    else:
        settings = dict(of_channels='channels' in given, images=dict(size=256, num_images=64) | images)
        ablate(config, given.get('ratios', (0.9, 0.8, 0.7, 0.5)), **settings, **common)


if __name__ == '__main__':
    main()
