"""The records that batch formers, admission and the simulator work on.

One record per request and worker, one per worker: numpy structured arrays, so that the same
compiled code runs over the books of the controller, over those of a worker, and over the
simulator's world. All numbers are 64 bits wide. Units: `_s` seconds, `_at_s` instants.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Phases of a request on one worker.
PREFILL = 0  # its prompt is not computed yet, or not all of it
ARRIVING = 1  # its KV pages are on their way to this worker
DECODE = 2  # its next step yields a token
LEAVING = 3  # its prompt is computed, and its KV pages are on their way from this worker
GONE = 4  # ended here

# Instead of a number of tokens: free the KV blocks of this request and compute them again later.
PREEMPT = -1

_F = np.float64
_I = np.int64

REQUEST = np.dtype(
    [
        # Number in the order of arrival; smaller came first.
        ("order", _I),
        ("tier", _I),
        ("phase", _I),
        # 1 if promised, 0 if best effort. Due times of best effort are infinite.
        ("guaranteed", _I),
        # 1 if it was not promised and is now treated as if it had been, see core.planner.ageing.
        ("is_raised", _I),
        # 1 if its KV pages leave for another worker once the prompt is computed.
        ("leaves_after_prefill", _I),
        ("arrived_at_s", _F),
        # The prompt must be computed by then for the first token to be on time; where it leaves
        # after that, its pages must be sent by then.
        ("prefill_due_at_s", _F),
        # The demand line: the next output token must leave by then.
        ("next_due_at_s", _F),
        # By how much the first token left before its due time; 0 until then.
        ("lead_s", _F),
        # When its KV pages will be here; of use in ARRIVING only.
        ("arrives_at_s", _F),
        # Gap between tokens in the current stage, tokens left in it, gap after it.
        ("tpot_s", _F),
        ("num_stage_tokens_left", _I),
        ("later_tpot_s", _F),
        # Tokens to compute before the next output token: the prompt, and after a preemption
        # also the output so far.
        ("num_prompt_tokens", _I),
        # Of these, tokens whose KV exists on this worker. In DECODE: all KV tokens held.
        ("num_computed_tokens", _I),
        # Of these, found here at the start: their pages leave with those of the first step.
        ("num_unsent_tokens", _I),
        ("num_output_tokens", _I),
        # What the plan counts on as the whole output's length; at least num_output_tokens + 1.
        ("num_output_bound", _I),
        # KV blocks held on this worker.
        ("num_blocks", _I),
        # Probability that one drafted token is accepted, as learned so far.
        ("acceptance", _F),
        # For the batch former's own use between steps; 0 at first.
        ("mark", _F),
    ]
)

WORKER = np.dtype(
    [
        # Roofline of this worker, see core.perf_model; what the planner believes.
        ("floor_s", _F),
        ("token_s", _F),
        ("fixed_s", _F),
        ("sequence_s", _F),
        ("context_token_s", _F),
        ("prefill_attention_s", _F),
        ("chunk_s", _F),
        # One round of drafting: once per step and drafted token, and per sequence and token.
        ("draft_floor_s", _F),
        ("draft_sequence_s", _F),
        # Measured / predicted step time; factors on top that a sum of steps, and a single one,
        # hardly ever exceed.
        ("time_ratio", _F),
        ("guard_ratio", _F),
        ("step_guard_ratio", _F),
        ("block_size", _I),
        ("num_blocks", _I),
        ("num_free_blocks", _I),
        ("max_step_tokens", _I),
        ("max_running", _I),
        # The longest draft this worker may use; 0 switches speculation off.
        ("max_draft_tokens", _I),
        # Longest step while prompts wait, chosen by core.planner.step_length.
        ("step_cap_s", _F),
        # End of the step that runs now; in the past when idle.
        ("busy_until_s", _F),
        # Its outgoing link: when all pages that wait are sent, and the time those of a token take.
        ("link_free_at_s", _F),
        ("send_token_s", _F),
        # 1 if it may prefill, 1 if it may decode.
        ("prefills", _I),
        ("decodes", _I),
        # Settings of a baseline's batch former, see core.planner.baselines.
        ("token_budget", _I),
        ("former", _I),
        # For the batch former's own use between steps; 0 at first.
        ("mark", _F),
    ]
)

# Structured arrays have no finer type in numpy's stubs, and compiled code reads the fields of
# one record as attributes, which numpy's own records do not have.
Records: TypeAlias = NDArray[Any]
Record: TypeAlias = Any
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
