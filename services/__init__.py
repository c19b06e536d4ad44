"""The live shells. Nothing here decides."""
