"""Data sets: readers, the step planner, packed rows and prompts. Given a processor; never imports a network."""
