"""Exact answers where the model is known: what is best, what a policy is worth, what a time limit allows.

The one idea: everything is synchronous sweeps of `Model.backup` from zero. After k of them a table holds the
returns of k steps, and once it no longer changes, those of all steps.
"""

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rlagents_envs.model import Model, Values, settle

_TIE = 1e-9  # values that differ by less, relative to the largest, are equally good


def value_iteration(model: Model, discount: float) -> tuple[Values, int]:
    """Returns Q* [S, A] and the number of sweeps (Bellman 1957); NaN where there is nothing to choose."""
    return settle(model.sweeps(discount))


def evaluate_policy(model: Model, policy: Values, discount: float) -> Values:
    """Returns Q [S, A] of the policy with probabilities [S, A].

    Raises:
        ValueError: its values have no bound: discount 1, and episodes without end.
    """
    return settle(model.sweeps(discount, policy))[0]


def policy_iteration(model: Model, discount: float) -> tuple[Values, Values, int]:
    """Returns Q* [S, A], a best policy [S, A] and how often the uniform one was improved (Howard 1960).

    An action is changed only for a better one, so equally good ones end the search and do not prolong it.
    """
    policy, rounds = uniform(model), 0
    while True:
        q = evaluate_policy(model, policy, discount)
        kept = np.where(policy > 0, q, -np.inf).max(1) >= model.values(q) - _tie(q)
        better = np.where((kept & (policy.max(1) == 1))[:, None], policy, greedy(model, q))
        if np.array_equal(better, policy):
            return q, policy, rounds
        policy, rounds = better, rounds + 1


def within(model: Model, limit: int, policy: Values | None = None) -> Values:
    """Returns the largest expected return [S] of `limit` steps, undiscounted, or that of a policy [S, A].

    The best choice depends on how many steps are left, which an agent does not see: a bound for all agents.
    """
    q = next(islice(model.sweeps(1.0, policy), limit - 1, None))
    return model.values(q, policy)


def uniform(model: Model) -> Values:
    """Returns the probabilities [S, A] of choosing at random among what there is to choose."""
    return model.choices / np.maximum(1, model.choices.sum(1, keepdims=True))


def best_actions(model: Model, q: Values) -> NDArray[np.bool_]:
    """Returns which actions [S, A] are best by Q [S, A], several where they are equally good."""
    best = np.where(model.choices, q, -np.inf)
    return model.choices & (best >= best.max(1, keepdims=True) - _tie(q))


def greedy(model: Model, q: Values) -> Values:
    """Returns the probabilities [S, A] of taking the first of the best actions."""
    best = best_actions(model, q)
    return np.eye(q.shape[1])[best.argmax(1)] * best.any(1, keepdims=True)


def _tie(q: Values) -> float:
    return _TIE * float(np.nanmax(np.abs(q), initial=1))
