"""Soft Actor-Critic as in section 4.3.4 of the paper, for episodes whose reward comes at their end."""

import copy
import math
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmautodfp.utils.registry import AGENTS
from mmautodfp.utils.settings import Count, Positive, Several, Share, Whole, settings
from mmautodfp.utils.timing import torch_threads

from .agent import Agent, AgentSpec, Trajectory, require_settings
from .baselines import RandomSearch
from .networks import Actor, Critic
from .objectives import draw_preferences
from .replay import Batch, ReplayBuffer, relabel

POLICY_STREAM, INIT_STREAM = 1, 2
OPTIMIZERS = ('actor_optimizer', 'critic_optimizer', 'alpha_optimizer')


@settings('SAC')
class SACConfig:
    """Settings of the agent; a default not marked otherwise is the paper's.

    Attributes:
        hidden_sizes (tuple[int, ...]): Neurons of each hidden layer, of actor and critics. Defaults to (256, 256).
        actor_lr (float): Adam's learning rate for the actor. Defaults to 1e-3.
        critic_lr (float): Adam's learning rate for the critics. Defaults to 1e-3.
        alpha_lr (float): Adam's learning rate for the log of the entropy coefficient. Defaults to 3e-4.
        gamma (float): Discount, in [0, 1]. Defaults to 1.
        tau (float): Share of the critics that moves into their targets at each update, in (0, 1]; only TD has target
            critics. Defaults to 0.01.
        batch_size (int): Transitions in an update. Defaults to 128.
        buffer_episodes (int): Episodes that the replay buffer holds. Defaults to 100.
        warmup_episodes (int): Episodes at the start that only fill the buffer. Defaults to 200.
        warmup (str): How they act: 'random', as in the paper, or 'around_uniform', where the ratios lie around the
            uniform plan, or a better one to start from (see :class:`RandomSearch`), and the untrained policy is
            centred on it. Defaults to 'random'.
        initial_alpha (float): Entropy coefficient at the start. The paper does not tell it. Defaults to 0.01.
        target_entropy (float | None): Entropy that the policy is held at, in nats, for actions in [-1, 1]. The paper
            does not tell it. Defaults to None: minus the action's length.
        updates_per_episode (int | None): Updates after an episode. Defaults to None: one a group, as in Algorithm 1.
        credit (str): Targets of the critics. 'td', as in Algorithm 1, bootstraps from the target critics' values of the
            next state. As the paper's states do not depend on earlier actions, these values are the same for every
            action: only the last group's actions are learned. 'monte_carlo' is the return, the discounted reward of
            the rest of the episode. Defaults to 'monte_carlo', not the paper's.
        drawn_preferences (float): With several objectives, the share of episodes that are played, and of transitions
            that are learned from, under a random preference in place of the one that is asked for; with 0 the agent
            learns for that one alone. Defaults to 0.5. The paper has one objective.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """

    hidden_sizes: Several[Count] = (256, 256)
    actor_lr: Positive = 1e-3
    critic_lr: Positive = 1e-3
    alpha_lr: Positive = 3e-4
    gamma: Share = 1.0
    tau: Annotated[float, Field(gt=0, le=1)] = 0.01
    batch_size: Count = 128
    buffer_episodes: Count = 100
    warmup_episodes: Whole = 200
    warmup: Literal['random', 'around_uniform'] = 'random'
    initial_alpha: Positive = 0.01
    target_entropy: float | None = None
    updates_per_episode: Count | None = None
    credit: Literal['monte_carlo', 'td'] = 'monte_carlo'
    drawn_preferences: Share = 0.5


@AGENTS.register_module()
class SAC(Agent):
    """Soft Actor-Critic with one policy, twin critics and a learned entropy coefficient.

    Inside the networks actions are in [-1, 1], everywhere else in [0, 1]. With several objectives, the networks also
    see the preference that an episode is played under. The buffer holds the reward of each objective, so an update can
    weight them with any preference.

    Args:
        spec (AgentSpec): The task.
        **settings: The fields of :class:`SACConfig`.

    Raises:
        AutoDFPError: A setting is unknown, of another type or out of its range.
    """

    def __init__(self, spec: AgentSpec, **settings: Any):
        super().__init__(spec)
        config = SACConfig(**settings)
        if config.target_entropy is None:
            config = replace(config, target_entropy=-float(spec.action_dim))
        if config.updates_per_episode is None:
            config = replace(config, updates_per_episode=spec.horizon)
        self.config = config
        self.explorer = RandomSearch(spec, around_uniform=config.warmup == 'around_uniform')
        self.random = spec.generator(POLICY_STREAM)
        self.preference = torch.tensor(spec.preference)
        capacity = config.buffer_episodes * spec.horizon
        self.buffer = ReplayBuffer(capacity, spec.state_dim, spec.action_dim, len(spec.preference))
        self._build_networks()
        self._build_optimizers()

    def _build_networks(self) -> None:
        config = self.config
        spec = replace(self.spec, state_dim=self.spec.state_dim + len(self.preference))
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed the GPUs.
            torch.default_generator.set_state(spec.generator(INIT_STREAM).get_state())
            self.actor = Actor(spec, config.hidden_sizes)
            self.qf1, self.qf2 = (Critic(spec, config.hidden_sizes) for _ in range(2))
        if config.warmup == 'around_uniform':
            self.actor.centre(_to_network(torch.tensor(spec.uniform_action)))
        self.networks = ['actor', 'qf1', 'qf2']
        if config.credit == 'td':
            self.qf1_target, self.qf2_target = (copy.deepcopy(qf).requires_grad_(False) for qf in (self.qf1, self.qf2))
            self.networks += ['qf1_target', 'qf2_target']
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.initial_alpha)))

    def _build_optimizers(self) -> None:
        config = self.config
        critics = [*self.qf1.parameters(), *self.qf2.parameters()]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr)
        self.critic_optimizer = torch.optim.Adam(critics, lr=config.critic_lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=config.alpha_lr)

    @property
    def warming_up(self) -> bool:
        """Whether the present episode only fills the buffer."""
        return self.episode < self.config.warmup_episodes

    def begin_episode(self, episode: int) -> None:
        super().begin_episode(episode)
        if self.warming_up:
            self.explorer.begin_episode(episode)
        if self.spec.preference:
            self.preference = self._preferences(1)[0]

    def _preferences(self, count: int) -> Tensor:
        return draw_preferences(self.spec.preference, count, self.config.drawn_preferences, self.random)

    @torch.no_grad()
    def act(self, state: Tensor) -> Tensor:
        """A random action [A] in a warm-up episode, else one of the policy's."""
        if self.warming_up:
            return self.explorer.act(state)
        states = torch.cat([state.to(self.log_alpha), self.preference]).unsqueeze(0)
        return _to_public(self.actor.sample(states, self.random)[0]).squeeze(0)

    # One thread: such small matrices get slower with more (40 times on busy cores), and sums come out the same on
    # machines with more cores. Changing the number takes milliseconds, too long for single actions.
    @torch_threads(1)
    def learn(self, trajectory: Trajectory) -> dict[str, float]:
        """Store the episode and, after the warm-up, update ``config.updates_per_episode`` times.

        Returns:
            dict[str, float]: Means over the updates: ``qf_loss`` (of both critics together), ``qf1_values``,
            ``actor_loss``, ``alpha`` and ``entropy`` (nats). Empty in the warm-up.
        """
        self.buffer.add(self._credited(trajectory))
        if self.warming_up:
            return {}
        logs = [self.update(self._sample()) for _ in range(self.config.updates_per_episode)]
        return {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}

    def _sample(self) -> Batch:
        batch = self.buffer.sample(self.config.batch_size, self.random)
        return relabel(batch, self._preferences(len(batch.rewards))) if self.spec.preference else batch

    def _credited(self, trajectory: Trajectory) -> Trajectory:
        """The episode; for Monte Carlo with each step's return in place of its reward."""
        if self.config.credit == 'td':
            return trajectory
        rewards = trajectory.rewards.clone()
        for step in reversed(range(len(rewards) - 1)):
            rewards[step] += self.config.gamma * rewards[step + 1]
        return replace(trajectory, rewards=rewards)

    def update(self, batch: Batch) -> dict[str, float]:
        """One round of Algorithm 1's updates: critics, policy, entropy coefficient, target critics if there are any."""
        batch = batch._replace(actions=_to_network(batch.actions))
        log = self._update_critics(batch)
        log_probs = self._update_actor(batch, log)
        self._update_alpha(log_probs)
        if self.config.credit == 'td':
            self._update_targets()
        return log

    @torch.no_grad()
    def critic_targets(self, batch: Batch) -> Tensor:
        """Targets of the critics, [B]: the returns, or reward plus the soft value of the next state."""
        if self.config.credit == 'monte_carlo':
            return batch.rewards  # which are returns, see _credited()
        actions, log_probs = self.actor.sample(batch.next_states, self.random)
        values = torch.minimum(self.qf1_target(batch.next_states, actions), self.qf2_target(batch.next_states, actions))
        soft_values = values - self.log_alpha.exp() * log_probs
        return torch.where(batch.dones, batch.rewards, batch.rewards + self.config.gamma * soft_values)

    def _update_critics(self, batch: Batch) -> dict[str, float]:
        targets = self.critic_targets(batch)
        qf1_values = self.qf1(batch.states, batch.actions)
        qf_loss = F.mse_loss(qf1_values, targets) + F.mse_loss(self.qf2(batch.states, batch.actions), targets)
        self.critic_optimizer.zero_grad()
        qf_loss.backward()
        self.critic_optimizer.step()
        return dict(qf_loss=qf_loss.item(), qf1_values=qf1_values.mean().item())

    def _update_actor(self, batch: Batch, log: dict[str, float]) -> Tensor:
        actions, log_probs = self.actor.sample(batch.states, self.random)
        values = torch.minimum(self.qf1(batch.states, actions), self.qf2(batch.states, actions))
        alpha = self.log_alpha.detach().exp()
        actor_loss = (alpha * log_probs - values).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward(inputs=list(self.actor.parameters()))  # spares the critics' weight gradients
        self.actor_optimizer.step()
        log_probs = log_probs.detach()
        log.update(actor_loss=actor_loss.item(), alpha=alpha.item(), entropy=-log_probs.mean().item())
        return log_probs

    def _update_alpha(self, log_probs: Tensor) -> None:
        alpha_loss = -(self.log_alpha.exp() * (log_probs + self.config.target_entropy)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()

    @torch.no_grad()
    def _update_targets(self) -> None:
        for online, target in ((self.qf1, self.qf1_target), (self.qf2, self.qf2_target)):
            for source, lagging in zip(online.parameters(), target.parameters(), strict=True):
                lagging.lerp_(source, self.config.tau)

    def state_dict(self) -> dict[str, Any]:
        state = dict(super().state_dict(), config=self._plain_config(), explorer=self.explorer.state_dict())
        state.update(random=self.random.get_state(), buffer=self.buffer.state_dict(), log_alpha=self.log_alpha.detach())
        state.update({name: dict(getattr(self, name).state_dict()) for name in self.networks})
        # An optimizer's settings follow from the config, and hold tuples and None.
        state.update({name: getattr(self, name).state_dict()['state'] for name in OPTIMIZERS})
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        require_settings('agent', self._plain_config(), state['config'])
        state = copy.deepcopy(state)  # an optimizer would take the tensors over and write to them
        self.random.set_state(state['random'])
        for name in ('explorer', 'buffer', *self.networks):
            getattr(self, name).load_state_dict(state[name])
        for name in OPTIMIZERS:
            optimizer = getattr(self, name)
            optimizer.load_state_dict(dict(optimizer.state_dict(), state=state[name]))
        with torch.no_grad():
            self.log_alpha.copy_(state['log_alpha'])

    def _plain_config(self) -> dict[str, Any]:
        return dict(asdict(self.config), hidden_sizes=list(self.config.hidden_sizes))


def _to_network(actions: Tensor) -> Tensor:
    return 2 * actions - 1


def _to_public(actions: Tensor) -> Tensor:
    return (actions + 1) / 2
