"""How a plan is found."""

from .agent import Agent, AgentSpec, Trajectory
from .baselines import RandomSearch
from .environment import PruningEnv, RatioRange
from .evolution import CMAES
from .finalists import NUM_FINALISTS
from .history import History, Progress
from .objectives import Objectives, Weights, pareto_set
from .racing import Racing
from .ranks import on_every_rank, on_main, share_out
from .sac import SAC, SACConfig
from .state import Clustering

__all__ = [
    'CMAES',
    'NUM_FINALISTS',
    'SAC',
    'Agent',
    'AgentSpec',
    'Clustering',
    'History',
    'Objectives',
    'Progress',
    'PruningEnv',
    'Racing',
    'RandomSearch',
    'RatioRange',
    'SACConfig',
    'Trajectory',
    'Weights',
    'on_every_rank',
    'on_main',
    'pareto_set',
    'share_out',
]
