"""Images in memory, subtasks, splits, partitions, assignments, batches and augmentation."""
