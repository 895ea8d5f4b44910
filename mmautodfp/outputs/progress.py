"""What a search tells while it runs: a live line in a terminal, plain lines in the log."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator
from typing import TextIO

from mmengine.dist import is_main_process
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmautodfp.search import Progress


class SearchLine:
    """Tells of the episodes; use it as :func:`search_line` gives it.

    Args:
        logger (logging.Logger): Gets a line for every new best plan, for every ``interval`` episodes and for the last.
        bar (tqdm): The live line; disabled where there is no terminal.
        interval (int): Episodes between two lines in the log.
    """

    def __init__(self, logger: logging.Logger, bar: tqdm, interval: int):
        self.logger, self.bar, self.interval = logger, bar, interval
        self.begun = False

    def tell(self, progress: Progress) -> None:
        """Tell of an episode that has just ended."""
        if not self.begun:  # a resumed search has played some already
            self.bar.initial = self.bar.n = self.bar.last_print_n = progress.episode
            self.begun = True
        self.bar.set_postfix_str(f'reward {progress.reward:.4f}, best {progress.best_reward:.4f}', refresh=False)
        self.bar.update()
        done = progress.episode + 1
        if progress.improved or done % self.interval == 0 or done == progress.num_episodes:
            minutes, seconds = divmod(round(progress.eta), 60)
            self.logger.info(
                f'episode {done}/{progress.num_episodes}  reward {progress.reward:.4f}  best {progress.best_reward:.4f}'
                f'{" (new)" if progress.improved else ""}  {progress.seconds:.1f} s  eta {minutes}:{seconds:02d}',
                extra=dict(is_shown_live=not progress.improved),
            )


@contextlib.contextmanager
def search_line(logger: logging.Logger, total: int, interval: int, file: TextIO | None = None) -> Iterator[SearchLine]:
    """A live line below the log's, as long as the block lasts.

    Args:
        logger (logging.Logger): The run's.
        total (int): Episodes in all.
        interval (int): Episodes between two lines in the log. What the live line shows anyhow is then left to the
            log's files.
        file (TextIO | None): Where the live line goes, if that is a terminal. Defaults to None: stderr.
    """
    stream = file or sys.stderr
    live = is_main_process() and stream.isatty()
    size = shutil.get_terminal_size()  # 80 x 24 where a terminal does not tell; tqdm would show nothing there
    bar = tqdm(
        desc='search',
        total=total,
        file=stream,
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
        yield SearchLine(logger, bar, interval)
