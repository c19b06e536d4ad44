"""How likely drafted tokens are accepted, learned from steps, one estimate per tier.

A drafted token is tried only if all before it were accepted (Leviathan et al., arXiv
2211.17192), so a draft of k tokens of which a < k were accepted is a + 1 trials, a of them good;
with a = k it is k trials. The estimate is the mean of a Beta distribution over the trials, where
old ones count less and less, as does the absence of new ones: where drafting was found not to pay
and was given up, the estimate returns to the prior, and a step or two try again.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import Record, Records
from headway.core.kernel import kernel

ACCEPTANCE = np.dtype(
    [
        # What is believed before anything was seen.
        ("prior", np.float64),
        # Trials that count, and the good ones of them.
        ("num_trials", np.float64),
        ("num_good", np.float64),
    ]
)

# The prior counts as so many trials.
PRIOR_TRIALS = 20.0
# A trial counts 1 / e after so many decodes of its tier, drafted for or not: with a hundred at
# once some seconds, within which texts do not change much.
MEMORY_DECODES = 2000.0


def new_acceptances(prior: float, num_tiers: int) -> Records:
    """ACCEPTANCE records, shape (num_tiers,), of which nothing was seen yet."""
    records = np.zeros(num_tiers, ACCEPTANCE)
    records["prior"] = prior
    return records


@kernel
def observe_decode(acceptance: Record, num_drafted: int, num_accepted: int) -> None:
    """Count one decode of one step.

    Args:
        acceptance: ACCEPTANCE record of its tier.
        num_drafted: drafted tokens that were verified; 0 if none were.
        num_accepted: of these.
    """
    kept = 1.0 - 1.0 / MEMORY_DECODES
    acceptance.num_trials *= kept
    acceptance.num_good *= kept
    acceptance.num_trials += min(num_drafted, num_accepted + 1)
    acceptance.num_good += num_accepted


@kernel
def acceptance_of(acceptance: Record) -> float:
    """Probability that the next drafted token is accepted, given that all before it were."""
    good = PRIOR_TRIALS * acceptance.prior + acceptance.num_good
    return float(good / (PRIOR_TRIALS + acceptance.num_trials))
