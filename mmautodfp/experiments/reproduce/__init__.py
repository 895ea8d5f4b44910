"""The paper's tables on what is at hand: its figures, ours beside them, and what could not be measured."""

from .bench import NetworkBench
from .paper import ALL_TABLES, NETWORKS, Claim, claims
from .report import compact, markdown, write_report
from .run import Settings, reproduce

__all__ = [
    'ALL_TABLES',
    'NETWORKS',
    'Claim',
    'NetworkBench',
    'Settings',
    'claims',
    'compact',
    'markdown',
    'reproduce',
    'write_report',
]
