"""Finding, reading and exporting what a run trained."""
