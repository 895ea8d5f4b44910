"""Prune several detectors to several ratios and write a table and a Pareto plot of the results.

Example:
    python tools/sweep.py configs/demo/*_autodfp.py --ratios 0.9 0.8 0.7 0.5
"""

from mmautodfp.utils.command_line import add_cfg_options, add_device, new_parser, read_arguments, told


@told('what was finished is kept: the same command goes on')
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('configs', nargs='+', help='configs with the search settings and a load_from')
    parser.add_argument('--ratios', nargs='+', type=float, required=True, help='shares of the parameters that stay')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='seeds of the searches (default: 0)')
    parser.add_argument('--episodes', type=int, help="plans that each search tries (default: the configs')")
    parser.add_argument('--work-dir', default='work_dirs/sweep', help='where to (default: work_dirs/sweep)')
    parser.add_argument(
        '--latency-repeat', type=int, default=50, help='measurements of each latency, 0 for none (default: 50)'
    )
    add_device(parser)
    add_cfg_options(parser)
    arguments = read_arguments(parser, argv)

    from mmautodfp.experiments.sweep import sweep

    sweep(**arguments)


if __name__ == '__main__':
    main()
