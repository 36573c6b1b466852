"""Device profiles (`profiles`), the cost of a round (`ledger`), the device of each client (`fleet`), narrower models (`widths`).

Seconds, joules and memory of a round are modelled, from counted work and from profiles that name the source of each number. Everything that
shows them says that they are modelled.
"""
