"""The paper's tables on the weights and images at hand, with its figures and what could not be measured."""
