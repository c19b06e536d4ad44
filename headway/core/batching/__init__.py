"""One step's token grants: the batch former of Headway. Start at `former`.

Arguments that its kernels share are those of `form_slack`; besides, `decodes` and `prompts` are
positions in `ids` in the order in which they are granted, `decode_due` the instants at which
these decodes are due, infinite for best effort, and `step` is a STEP record, shape (1,).
"""

from headway.core.batching.blocks import blocks_for
from headway.core.batching.former import form_slack

__all__ = ["blocks_for", "form_slack"]
