"""From a trained model to a device: distillation, pruning, int8, export to a file that runs without torch, latency.

The latency of a file is measured, on the machine that runs the command.
"""
