"""The devices that training is for: what a round would cost on them (`profiles`, `ledger`, `fleet`).

Nothing here is measured on a device. Seconds, joules and memory are modelled from counted work and from profiles whose numbers carry
their sources, and everything that shows them says so.
"""
