"""The Lightning module, schedules and callbacks of a run."""
