"""The way of a trained model to a device: distillation, pruning, int8, export to a file that needs no torch, latency.

The latency of a file is measured, on the machine at hand.
"""
