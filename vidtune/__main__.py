"""``python -m vidtune`` is the ``vidtune`` command."""

from vidtune.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main())
