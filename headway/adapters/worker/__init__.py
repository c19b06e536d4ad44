"""What the prefill and decode services share: they differ in the one RPC they serve."""
