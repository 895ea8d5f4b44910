"""How a plan is found."""

from .agent import Agent, AgentSpec, Trajectory
from .baselines import RandomSearch
from .environment import PruningEnv, RatioRange, Rollout
from .evolution import CMAES
from .finalists import NUM_FINALISTS, Finalist
from .history import History, Progress
from .objectives import Objectives, Weights, pareto_set
from .racing import Racing
from .ranks import on_every_rank, on_main, share_out
from .replay import ReplayBuffer
from .sac import SAC, SACConfig
from .searcher import Searcher
from .state import Clustering, LayerState, layer_state, scale_states

__all__ = [
    'CMAES',
    'NUM_FINALISTS',
    'SAC',
    'Agent',
    'AgentSpec',
    'Clustering',
    'Finalist',
    'History',
    'LayerState',
    'Objectives',
    'Progress',
    'PruningEnv',
    'Racing',
    'RandomSearch',
    'RatioRange',
    'ReplayBuffer',
    'Rollout',
    'SACConfig',
    'Searcher',
    'Trajectory',
    'Weights',
    'layer_state',
    'on_every_rank',
    'on_main',
    'pareto_set',
    'scale_states',
    'share_out',
]
