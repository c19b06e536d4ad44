"""Numbers of the batch formers, as `core.planner.formers` knows them."""

SLACK = 0  # the planner's own
VLLM_V0 = 1
VLLM_V1 = 2
SARATHI = 3
EDF = 4
NIYAMA = 5
SCORPIO = 6
