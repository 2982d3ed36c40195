"""From generated answers to tables: tasks, predictions on disk, metrics, intervals, comparisons, plots. No models."""
