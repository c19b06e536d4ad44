"""One file per technology: the ways in which Headway meets the world."""
