"""Measure the tool itself; each figure is a ratio within one process.

Example:
    python tools/benchmark.py reward configs/demo/faster_rcnn_digits_autodfp.py --out reward.json
    python tools/benchmark.py search configs/demo/vgg_digits_autodfp.py --episodes 100 --out searches.json
"""

import json
from pathlib import Path

from _cli import new_parser


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument(
        'what',
        choices=['reward', 'search'],
        help="'reward': an episode against MMDetection's runner.val(); 'search': random search, CMA-ES and SAC",
    )
    parser.add_argument('config', help='config with the search settings')
    parser.add_argument('--repeat', type=int, default=5, help='measurements, of which the median counts (default: 5)')
    parser.add_argument('--episodes', type=int, default=100, help='of each search (default: 100)')
    parser.add_argument('--seeds', type=int, default=5, help='searches of each kind (default: 5)')
    parser.add_argument('--out', type=Path, help='JSON file to write as well')
    args = parser.parse_args()

    from mmautodfp.benchmark import benchmark_reward
    from mmautodfp.benchmark_search import benchmark_search

    if args.what == 'search':
        result = benchmark_search(args.config, args.episodes, args.seeds)
    else:
        result = benchmark_reward(args.config, args.repeat)
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + '\n')


if __name__ == '__main__':
    main()
