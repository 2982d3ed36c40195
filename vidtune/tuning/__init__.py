"""Which weights train, and how: role policies, adapters, parameter groups, the table of what trains."""
