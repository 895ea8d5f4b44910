"""What a search tells while it runs."""

import contextlib
import io
import logging

import pytest
from mmengine.logging import MMLogger

from mmautodfp.outputs.progress import search_line
from mmautodfp.search import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress(episode, improved=False):
    values = dict(reward=0.25, best_reward=0.5, improved=improved, seconds=1.0, widths=[], eta=61.4)
    return Progress(episode=episode, num_episodes=7, scalars={}, **values)


@pytest.fixture
def screen():
    return Terminal()


@pytest.fixture
def logger(tmp_path, request, screen):
    """A run's logger, which writes to the screen and to a file."""
    logger = MMLogger(f'run {request.node.name}', log_file=str(tmp_path / 'run.log'))
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(screen)
    return logger


@contextlib.contextmanager
def line_to(file, logger, screen):
    """The live line on stderr, and the log's on stdout."""
    with (
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(file),
        search_line(logger, total=7, interval=3) as tell,
    ):
        yield tell


def play(logger, screen, file):
    with line_to(file, logger, screen) as tell:
        for episode in range(1, 7):
            tell(progress(episode, improved=episode == 3))


def told(text):
    return [line.split('episode ')[1].split()[0] for line in text.splitlines() if 'episode ' in line]


def test_a_terminal_shows_a_line_that_moves_and_only_new_best_plans_above_it(logger, screen):
    terminal = Terminal()
    play(logger, screen, terminal)
    shown = terminal.getvalue()
    assert '\n' not in shown.strip()
    assert 'reward 0.2500, best 0.5000' in shown
    assert '7/7' in shown
    assert '(new)' in screen.getvalue()
    assert told(screen.getvalue()) == ['4/7']
    logger.info('after it')
    assert 'after it' in screen.getvalue()


def test_the_log_file_has_plain_lines_either_way(logger, screen, tmp_path):
    for file in (Terminal(), io.StringIO()):
        (tmp_path / 'run.log').write_text('')
        play(logger, screen, file)
        text = (tmp_path / 'run.log').read_text()
        assert told(text) == ['3/7', '4/7', '6/7', '7/7']  # every third, the best one, the last
        assert 'reward 0.2500  best 0.5000 (new)  1.0 s  eta 1:01' in text
        assert not {'\r', '\x1b'} & set(text)


def test_without_a_terminal_nothing_moves(logger, screen):
    pipe = io.StringIO()
    play(logger, screen, pipe)
    assert pipe.getvalue() == ''
    assert told(screen.getvalue()) == ['3/7', '4/7', '6/7', '7/7']


def test_the_loggers_handlers_are_as_before_even_after_an_error(logger, screen):
    before = list(logger.handlers)

    def interrupted():
        with line_to(Terminal(), logger, screen):
            assert logger.handlers != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert logger.handlers == before
