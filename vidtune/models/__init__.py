"""Networks: the shared early-fusion path and one folder per family (processor + network + weights)."""
