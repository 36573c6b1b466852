"""Devices: what a round would cost on them (`profiles`, `ledger`, `fleet`), and the way to them: smaller models and files without torch.

Seconds, joules and memory of a round are modelled from counted work and from profiles whose numbers carry their sources, and everything
that shows them says so. The latency of a file is measured, on the machine at hand.
"""
