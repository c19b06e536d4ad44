"""Our scheduler for unforked vLLM, loaded by name through `scheduler_cls`.

    scheduler.py      the classes vLLM loads
    granted_queues.py makes vLLM's queues hold what was granted, for one step
    symbols.py        private names of vLLM that these two use, and the check that it has them
    books.py          REQUEST records of the engine's requests; forms and counts its steps
    demand_book.py    what is demanded of each request, moved on as its tokens come
    formed_step.py    a step as the batch former made it
    tiers.py          what is known of drafts, tier by tier
    step_log.py       steps as they are scheduled and end
    demand.py         what a request carries with it, and plan updates that overtake it
    plan_socket.py    brings plan updates into the engine's process
    waker.py          wakes an engine that holds everything back
    utilities.py      what the worker process can ask of it

It decides nothing: `core.batching` grants tokens, and what it granted is carried out by what
vLLM offers: caps per request, requests taken out of its queues for one step, preemption. Until
`headway_form_steps` is called it is vLLM's own scheduler.
"""
