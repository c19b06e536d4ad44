"""An engine without a model: real queues, KV blocks and page transfers, predicted step times.

Prompts take the time that the perf model says; pages and tokens are hashes of the prompt, so
a page that is missing, torn, misplaced or another request's is noticed on arrival.
"""
