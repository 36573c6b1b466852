"""What a server does after it has aggregated: FedAwS (`spread_heads`) and FedDF (`distil_ensemble`)."""
