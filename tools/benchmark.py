"""Measure the tool itself; each figure is a ratio within one run.

Example:
    python tools/benchmark.py reward configs/demo/faster_rcnn_digits_autodfp.py --out reward.json
    python tools/benchmark.py search configs/demo/vgg_digits_autodfp.py --episodes 100 --out searches.json

reward      an episode against MMDetection's runner.val() on the same images, and where its time goes
racing      searches with and without stopping hopeless plans early, over five seeds
precision   whether lower precision ranks a hundred random plans as float32 does
ranks       seconds an episode on one rank and on two
search      random search, CMA-ES and SAC on the same task, over five seeds
"""

import json
from pathlib import Path

from _cli import new_parser, told

KINDS = ('reward', 'racing', 'precision', 'ranks', 'search')


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument('what', choices=KINDS, help='what to measure, see above')
    parser.add_argument('config', help='config with the search settings')
    parser.add_argument(
        '--repeat',
        type=int,
        help='measurements (reward), seeds (racing, search), plans (precision) or episodes (ranks)',
    )
    parser.add_argument('--episodes', type=int, default=100, help='of each search, for search (default: 100)')
    parser.add_argument('--out', type=Path, help='JSON file to write as well')
    args = parser.parse_args()

    from mmautodfp import benchmark
    from mmautodfp.benchmark_search import benchmark_search

    calls = dict(
        reward=lambda n=5: benchmark.benchmark_reward(args.config, n),
        racing=lambda n=5: benchmark.benchmark_racing(args.config, range(n)),
        precision=lambda n=100: benchmark.benchmark_precision(args.config, n),
        ranks=lambda n=24: benchmark.benchmark_ranks(args.config, episodes=n),
        search=lambda n=5: benchmark_search(args.config, args.episodes, n),
    )
    call = calls[args.what]
    text = json.dumps(call() if args.repeat is None else call(args.repeat), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + '\n')


if __name__ == '__main__':
    with told('benchmark'):
        main()
