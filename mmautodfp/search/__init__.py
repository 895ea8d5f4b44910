"""How a plan is found."""

from .agent import Agent, AgentSpec, Trajectory
from .baselines import RandomSearch, UniformPlan
from .environment import PruningEnv, RatioRange
from .evolution import CMAES
from .replay import ReplayBuffer
from .sac import SAC, SACConfig
from .searcher import History, Progress, Searcher
from .state import LayerState, layer_state, scale_states

__all__ = [
    'CMAES',
    'SAC',
    'Agent',
    'AgentSpec',
    'History',
    'LayerState',
    'Progress',
    'PruningEnv',
    'RandomSearch',
    'RatioRange',
    'ReplayBuffer',
    'SACConfig',
    'Searcher',
    'Trajectory',
    'UniformPlan',
    'layer_state',
    'scale_states',
]
