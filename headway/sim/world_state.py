"""The arrays of a simulated cluster, on which the compiled loop of `world_kernel` works."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.core.batch_state import Floats, Ints, Records

# What a request came to; SIM.outcome.
PENDING = 0
SERVED = 1
REFUSED = 2

SIM = np.dtype(
    [
        # The truth, which no policy sees.
        ("num_output_tokens", np.int64),
        ("num_thinking_tokens", np.int64),
        ("acceptance", np.float64),
        ("num_own_prompt_tokens", np.int64),
        # Sessions of several rounds: which, or -1; whether another round follows this one.
        ("session", np.int64),
        ("is_followed", np.int64),
        # What happened.
        ("outcome", np.int64),
        ("deferred", np.int64),
        ("prefill_worker", np.int64),
        ("decode_worker", np.int64),
        ("first_due_at_s", np.float64),
        ("first_token_at_s", np.float64),
        ("last_token_at_s", np.float64),
        ("num_checkpoints_missed", np.int64),
        ("last_late", np.int64),
        ("num_late_tokens", np.int64),
        ("num_preemptions", np.int64),
        # Prompt tokens whose KV an earlier round had left where this one is prefilled.
        ("num_cached_tokens", np.int64),
        # The hand-over: whether the decode worker has set blocks aside, tokens sent so far.
        ("room_made", np.int64),
        ("num_sent_tokens", np.int64),
        ("sent_at_s", np.float64),
    ]
)

STEP = np.dtype(
    [
        ("worker", np.int64),
        ("start_s", np.float64),
        ("duration_s", np.float64),
        ("predicted_s", np.float64),
        ("num_tokens", np.int64),
        ("num_decodes", np.int64),
        ("num_context_tokens", np.int64),
        ("attention", np.float64),
        ("num_chunks", np.int64),
        ("num_draft_rounds", np.int64),
        ("num_drafted", np.int64),
    ]
)

# Tokens whose time counts: the first, every tenth and the last of a request.
TOKEN = np.dtype([("request", np.int64), ("index", np.int64), ("at_s", np.float64)])

# Entries of `World.counters`.
NUM_FINISHED, NUM_STEPS_LOGGED, NUM_TOKENS_LOGGED = range(3)
# Entries of `World.options`, each 0 or 1: return when a request ended; write `step_log` and
# `token_log`; the prefill worker emits the first token; the planner learns from measured step
# times; the planner learns which drafts are accepted.
STOP_ON_FINISH, LOG, PREFILL_EMITS, LEARN, LEARN_ACCEPTANCE = range(5)


class World(NamedTuple):
    """N requests, W workers and S sessions; a request has row i, and N + i where it is decoded.

    Attributes:
        requests: REQUEST records, shape (2 N,).
        sim: SIM records, shape (N,).
        ids, counts, grants: the lists of the workers, shapes (W, slots), (W,), (W, slots).
        workers: WORKER records, shape (W,).
        truths, knots, times: TRUTH records, shape (W,), and their step-time curves.
        formers: which batch former a worker uses, shape (W,).
        running: 1 while a step runs, shape (W,).
        wake_at_s: when a worker has something to do next, shape (W,).
        step_numbers: steps begun, shape (W,).
        link_latency_s: of every link, shape (1,).
        finished: requests that ended since the caller last looked, shape (N,).
        step_log: STEP records.
        token_log: TOKEN records.
        residuals: RESIDUAL records, shape (W,): what each worker's measured steps say.
        acceptances: ACCEPTANCE records of the tiers: what all workers' steps say about drafts.
        kept: blocks that a session's last round left on a worker, shape (W, S); see `kept_kv`.
        kept_since: order in which they were left, shape (W, S).
        kept_for: row of the request that will begin with them, or -1, shape (W, S).
        num_kept: sums of `kept` over sessions, shape (W,).
        kept_clock: the next number of `kept_since`, shape (1,).
        counters, options: see above.
    """

    requests: Records
    sim: Records
    ids: Ints
    counts: Ints
    grants: Ints
    workers: Records
    truths: Records
    knots: Floats
    times: Floats
    formers: Ints
    running: Ints
    wake_at_s: Floats
    step_numbers: Ints
    link_latency_s: Floats
    finished: Ints
    step_log: Records
    token_log: Records
    residuals: Records
    acceptances: Records
    kept: Ints
    kept_since: Ints
    kept_for: Ints
    num_kept: Ints
    kept_clock: Ints
    counters: Ints
    options: Ints
