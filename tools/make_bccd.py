"""Lay out the photographs of blood cells that the configs in configs/bccd read, from a checkout of their repository.

Example:
    git clone https://github.com/Shenggan/BCCD_Dataset
    python tools/make_bccd.py BCCD_Dataset data/bccd
"""

from mmautodfp.utils.command_line import new_parser, told


@told()
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('source', help='checkout of https://github.com/Shenggan/BCCD_Dataset')
    parser.add_argument('out', nargs='?', default='data/bccd', help='folder to make or to fill (default: data/bccd)')
    args = parser.parse_args(argv)

    from mmautodfp.zoo import make_bccd

    print(f'BCCD data set: {make_bccd(args.source, args.out)}')


if __name__ == '__main__':
    main()
