"""Published tables: each is a grid of runs, the columns that are read from their run directories, and the numbers it states."""
