"""The world of a run before anything has arrived, and what a policy sees of it."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import GONE, REQUEST, Ints
from headway.core.planner.acceptance import new_acceptances
from headway.core.planner.arrival import ClusterView
from headway.core.residual import new_residuals
from headway.sim.cluster import ClusterSpec
from headway.sim.kept_kv import NOBODY
from headway.sim.options import RunOptions
from headway.sim.workload import Workload
from headway.sim.world_state import (
    LEARN,
    LEARN_ACCEPTANCE,
    LOG,
    PREFILL_EMITS,
    SIM,
    STEP,
    TOKEN,
    World,
)

# Steps kept in the compiled loop's buffer before they are taken out; tokens twice as many, so
# that those of one more step always find room.
_LOG_ROWS = 65536


def new_world(
    workload: Workload, cluster: ClusterSpec, formers: tuple[int, ...], options: RunOptions
) -> World:
    """All workers idle, no request on any of them; `formers` as in `World`."""
    num_requests, num_workers = len(workload), cluster.num_workers
    truths, knots, times = cluster.truth_arrays(options.seed)
    requests = np.zeros(2 * num_requests, REQUEST)
    requests["phase"] = GONE
    sim = np.zeros(num_requests, SIM)
    sim["num_output_tokens"] = workload.num_output_tokens
    sim["session"], num_sessions = _sessions(workload.follows)
    sim["is_followed"][workload.follows[workload.follows >= 0]] = 1
    sim["first_token_at_s"] = sim["last_token_at_s"] = np.nan
    world_options = np.zeros(5, np.int64)
    world_options[LOG] = options.log
    world_options[PREFILL_EMITS] = options.prefill_emits_first_token
    world_options[LEARN_ACCEPTANCE] = options.learn and cluster.max_draft_tokens > 0
    world_options[LEARN] = options.learn and not cluster.exact
    return World(
        requests=requests,
        sim=sim,
        ids=np.zeros((num_workers, num_requests), np.int64),
        counts=np.zeros(num_workers, np.int64),
        grants=np.zeros((num_workers, num_requests), np.int64),
        workers=cluster.worker_records(),
        truths=truths,
        knots=knots,
        times=times,
        formers=np.array(formers, np.int64),
        running=np.zeros(num_workers, np.int64),
        wake_at_s=np.full(num_workers, np.inf),
        step_numbers=np.zeros(num_workers, np.int64),
        link_latency_s=np.array([cluster.link_latency_s]),
        finished=np.zeros(num_requests, np.int64),
        step_log=np.zeros(_LOG_ROWS if options.log else 1, STEP),
        token_log=np.zeros(2 * _LOG_ROWS if options.log else 1, TOKEN),
        residuals=new_residuals(num_workers),
        acceptances=new_acceptances(cluster.acceptance, len(workload.tiers)),
        kept=np.zeros((num_workers, num_sessions), np.int64),
        kept_since=np.zeros((num_workers, num_sessions), np.int64),
        kept_for=np.full((num_workers, num_sessions), NOBODY),
        num_kept=np.zeros(num_workers, np.int64),
        kept_clock=np.zeros(1, np.int64),
        counters=np.zeros(3, np.int64),
        options=world_options,
    )


def view_of(world: World, cluster: ClusterSpec) -> ClusterView:
    """The arrays of the world themselves: it shows at any time what is the case then."""
    return ClusterView(
        requests=world.requests,
        ids=world.ids,
        counts=world.counts,
        grants=world.grants,
        workers=world.workers,
        link_free_at_s=world.workers["link_free_at_s"],
        link_bytes_per_s=cluster.link_bytes_per_s,
        link_latency_s=cluster.link_latency_s,
        kv_bytes_per_token=cluster.hardware.kv_bytes_per_token,
        num_kept_tokens=np.zeros(cluster.num_workers, np.int64),
    )


def _sessions(follows: Ints) -> tuple[Ints, int]:
    """The session of each request, -1 where it is the only one of its session; and how many."""
    session = np.full(len(follows), -1, np.int64)
    num_sessions = 0
    for index in np.flatnonzero(follows >= 0).tolist():
        before = follows[index]
        if session[before] < 0:
            session[before] = num_sessions
            num_sessions += 1
        session[index] = session[before]
    return session, num_sessions
