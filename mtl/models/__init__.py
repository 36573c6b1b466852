"""Trunks, heads and architectures of multi-task models."""
