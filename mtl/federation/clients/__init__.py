"""Simulated clients: the backends (`loop`, `stacked`, `auto`), their gradients, and what clients keep (`bank`)."""
