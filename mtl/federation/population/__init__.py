"""Who takes part in a round: sampling, fleets of devices, and the part of the model that each client trains (`views`)."""
