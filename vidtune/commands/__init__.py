"""The `vidtune` command: one thin module per verb (parse, call, print)."""
