"""Device profiles, what a round costs on a device (`ledger`), which client is which device (`fleet`), narrower models (`widths`).

Seconds, joules and memory of a round are modelled from counted work and from profiles whose numbers carry their sources, and everything
that shows them says so.
"""
