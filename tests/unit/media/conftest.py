from pathlib import Path

import av
import pytest

from tests.unit.media.clips import CLIPS


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Path of a generated clip by name, written once."""
    av.logging.set_level(av.logging.PANIC)
    folder = tmp_path_factory.mktemp("clips")
    written: dict[str, Path] = {}

    def path_of(name: str) -> str:
        if name not in written:
            written[name] = CLIPS[name].write(folder)
        return str(written[name])

    return path_of
