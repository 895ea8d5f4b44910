"""The progress of a search: a live line in a terminal, plain lines in the log."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial

from mmengine.dist import is_main_process
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmautodfp.search import Progress
from mmautodfp.utils.timing import minutes_of


@contextlib.contextmanager
def search_line(logger: logging.Logger, total: int, interval: int) -> Iterator[Callable[[Progress], None]]:
    """Show a live line below the log while the block lasts; without a terminal, there are only lines in the log.

    Args:
        logger (logging.Logger): The run's. It gets a line for every new best plan, for every ``interval`` episodes and
            for the last. In a terminal with a live line, only new best plans get one; the log's files get all.
        total (int): Episodes in all.
        interval (int): Episodes between two lines in the log.

    Yields:
        Callable: To be called after each episode.
    """
    live = is_main_process() and sys.stderr.isatty()
    size = shutil.get_terminal_size()  # 80 x 24 where a terminal does not tell; tqdm would show nothing there
    bar = tqdm(
        desc='search',
        total=total,
        disable=not live,
        ncols=size.columns,
        nrows=size.lines,
        leave=False,
        mininterval=0,
        bar_format='{desc} {bar:20} {n_fmt}/{total_fmt}{postfix}  {elapsed} gone, {remaining} to go',
    )
    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        if live:
            before = list(logger.handlers)
            stack.enter_context(logging_redirect_tqdm([logger]))
            for handler in logger.handlers:
                if handler not in before:  # of the terminal
                    handler.addFilter(lambda record: not getattr(record, 'is_shown_live', False))
        yield partial(_tell, logger, bar, interval)


def _tell(logger: logging.Logger, bar: tqdm, interval: int, progress: Progress) -> None:
    if bar.n != progress.episode:  # at the start of a resumed search
        bar.initial = bar.n = bar.last_print_n = progress.episode
    bar.set_postfix_str(f'reward {progress.reward:.4f}, best {progress.best_reward:.4f}', refresh=False)
    bar.update()
    done = progress.episode + 1
    if progress.improved or done % interval == 0 or done == progress.num_episodes:
        logger.info(
            f'episode {done}/{progress.num_episodes}  reward {progress.reward:.4f}  best {progress.best_reward:.4f}'
            f'{" (new)" if progress.improved else ""}  {progress.seconds:.1f} s  eta {minutes_of(progress.eta)}',
            extra=dict(is_shown_live=not progress.improved),
        )
