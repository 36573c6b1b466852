"""Pair losses: a positive and a negative term for each subtask."""
