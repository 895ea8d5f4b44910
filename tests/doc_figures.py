"""The docs as tests read them that hold their figures against recorded files."""

from conftest import REPO


def text_of(page: str) -> str:
    """A page, such as 'docs/measurements.md', as it is."""
    return (REPO / page).read_text()


def story_of(page: str) -> str:
    """A page in one line; a percentage in it is written as in tables and in Python, 5% and not 5 %."""
    return ' '.join(text_of(page).split()).replace(' %', '%')


def row_of(*cells: str) -> str:
    """A row of a table, or the end of one."""
    return f'| {" | ".join(cells)} |'
