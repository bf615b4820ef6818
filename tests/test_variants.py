"""Every combination of values, returns, sampling, heads and noise learns the corridor's exact values."""

from itertools import product

import numpy as np
import pytest

from learning import CORRIDOR_DQN, learn_corridor

VALUES = {
    "scalar": {"kind": "scalar"},
    "categorical": {"kind": "categorical", "low": -0.5, "high": 1.5, "atoms": 51},
    "quantile": {"kind": "quantile", "quantiles": 11},
    "iqn": {"kind": "iqn", "learned": 8, "goals": 8, "choice": 16, "cosines": 16},
}
GRID = [*product(VALUES, (1, 3), ("uniform", "proportional"), (False, True), (False, True))]
# Each value of each column with each of its neighbours at least once, in the tests that always run.
ALWAYS = {
    ("scalar", 1, "proportional", False, True),
    ("scalar", 3, "uniform", True, True),
    ("categorical", 1, "uniform", True, False),
    ("categorical", 3, "proportional", False, True),
    ("quantile", 1, "proportional", True, True),
    ("quantile", 3, "uniform", False, False),
    ("iqn", 1, "uniform", False, True),
    ("iqn", 3, "proportional", True, False),
}


@pytest.mark.parametrize(
    ("kind", "n_step", "sampling", "dueling", "noisy"),
    [pytest.param(*way, marks=[] if way in ALWAYS else pytest.mark.slow) for way in GRID],
)
def test_every_variant_reaches_the_exact_values_of_the_corridor(kind, n_step, sampling, dueling, noisy):
    # Returns of more than one step are those of the behaviour: with them, it has to become greedy.
    last = 0.5 if n_step == 1 else 0.0
    q, exact = learn_corridor(
        7000,
        **CORRIDOR_DQN,
        n_step=n_step,
        double=True,
        exploration={"kind": "epsilon", "start": 1.0, "end": last, "steps": 3000},
        target={"kind": "fixed", "sync_every": 50},
        values=VALUES[kind],
        network={"hidden": [32], "dueling": dueling, "noisy": noisy},
        replay={"capacity": 1500, "sampling": {"kind": sampling}},
    )
    learned = slice(None) if n_step == 1 else slice(1, 2)  # a greedy behaviour shows the right alone
    np.testing.assert_allclose(q[:, learned], exact[:, learned], atol=0.05)
