"""Federated algorithms: the client half and the server half of each."""
