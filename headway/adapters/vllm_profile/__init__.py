"""Times single steps of a real vLLM engine, of any shape asked for."""
