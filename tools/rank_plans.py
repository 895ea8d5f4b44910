"""Measure how well rewards rank random plans: Spearman's correlation with the config's own.

Example:
    python tools/rank_plans.py configs/demo/faster_rcnn_digits_autodfp.py --image-size 128 --out rank.json
"""

from pathlib import Path

from mmautodfp.utils.command_line import add_cfg_options, new_parser, read_arguments, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='config of a model with the search settings')
    parser.add_argument('checkpoint', nargs='?', help="trained weights (default: the config's load_from)")
    parser.add_argument('--plans', type=int, default=100, help='random plans (default: 100)')
    parser.add_argument('--image-size', type=int, default=256, help='of the synthetic images (default: 256)')
    parser.add_argument('--num-images', type=int, default=16, help='synthetic images of each reward (default: 16)')
    parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
    add_cfg_options(parser)
    given = read_arguments(parser, argv)

    from mmautodfp.experiments.rank_plans import rank_plans
    from mmautodfp.utils.fileio import save_json

    def report(result: dict) -> None:
        save_json(result, given['out'])
        figures = '  '.join(f'{name}: {rho["all"]:.3f}' for name, rho in result['correlation'].items())
        print(f'{result["plans"]} plans  {figures}', flush=True)

    images = dict(size=given['image_size'], num_images=given['num_images'])
    rank_plans(given['config'], given['plans'], given['checkpoint'], images, given['cfg_options'], report)


if __name__ == '__main__':
    main()
