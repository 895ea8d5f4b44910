"""The paper's tables on what is at hand: its figures, ours beside them, and what could not be measured."""
