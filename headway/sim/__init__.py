"""The simulated shell: virtual time, seeded, the same policies as the live services."""
