import pytest
import torch

from mmautodfp.search import Trajectory
from mmautodfp.search.replay import ReplayBuffer

STATE_DIM, ACTION_DIM = 3, 2


def make_trajectory(length, generator):
    rewards = torch.zeros(length)
    rewards[-1] = torch.rand((), generator=generator)
    return Trajectory(
        states=torch.rand(length, STATE_DIM, generator=generator),
        actions=torch.rand(length, ACTION_DIM, generator=generator),
        rewards=rewards,
    )


def as_transitions(trajectory):
    """The slow reference: one tuple of plain numbers a transition."""
    states, last = trajectory.states.tolist(), len(trajectory.rewards) - 1
    return [
        (
            tuple(states[step]),
            tuple(trajectory.actions[step].tolist()),
            trajectory.rewards[step].item(),
            tuple(states[min(step + 1, last)]),
            step == last,
        )
        for step in range(last + 1)
    ]


def stored_transitions(buffer):
    rows = zip(*(column[: buffer.size].tolist() for column in buffer.data), strict=True)
    return [(tuple(state), tuple(action), reward, tuple(after), done) for state, action, reward, after, done in rows]


@pytest.mark.parametrize('lengths', [[4], [4, 4, 4], [3, 5, 2, 7, 1, 4], [10], [9, 3]])
def test_ring_holds_the_latest_transitions_in_the_slots_of_a_slow_list(lengths):
    generator = torch.Generator().manual_seed(0)
    buffer, slots, written = ReplayBuffer(10, STATE_DIM, ACTION_DIM), [], 0
    for length in lengths:
        trajectory = make_trajectory(length, generator)
        buffer.add(trajectory)
        for transition in as_transitions(trajectory):
            if len(slots) < 10:
                slots.append(transition)
            else:
                slots[written % 10] = transition
            written += 1
        assert buffer.size == len(slots)
        assert stored_transitions(buffer) == slots


def test_sample_draws_every_stored_transition_whole_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    buffer = ReplayBuffer(20, STATE_DIM, ACTION_DIM)
    trajectory = make_trajectory(6, generator)
    buffer.add(trajectory)
    batch = buffer.sample(200, generator)
    rows = zip(*(column.tolist() for column in batch), strict=True)
    drawn = {(tuple(state), tuple(action), reward, tuple(after), done) for state, action, reward, after, done in rows}
    assert drawn == set(as_transitions(trajectory))


def test_stored_state_brings_content_and_cursor_back(tmp_path):
    generator = torch.Generator().manual_seed(0)
    buffer, other = (ReplayBuffer(10, STATE_DIM, ACTION_DIM) for _ in range(2))
    for length in (4, 4, 4):
        buffer.add(make_trajectory(length, generator))
    torch.save(buffer.state_dict(), tmp_path / 'buffer.pth')
    other.load_state_dict(torch.load(tmp_path / 'buffer.pth', weights_only=True))
    trajectory = make_trajectory(3, generator)
    for one in (buffer, other):
        one.add(trajectory)
    assert stored_transitions(buffer) == stored_transitions(other)
    assert buffer.cursor == other.cursor
