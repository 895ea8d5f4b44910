"""The paper's tables on what is at hand: its figures, ours beside them, and what could not be measured."""

from .bench import NetworkBench
from .detectors import DETECTORS, SHARES, DetectorSettings, reproduce_detectors
from .paper import ALL_TABLES, NETWORKS, Claim, claims
from .report import compact, markdown, write_report
from .run import Settings, reproduce, require_known

__all__ = [
    'ALL_TABLES',
    'DETECTORS',
    'NETWORKS',
    'SHARES',
    'Claim',
    'DetectorSettings',
    'NetworkBench',
    'Settings',
    'claims',
    'compact',
    'markdown',
    'reproduce',
    'reproduce_detectors',
    'require_known',
    'write_report',
]
