"""Every golden case of the family, put together once per session."""

import pytest

from tests.families.golden import golden_cases
from tests.families.video_llama.case import Case


@pytest.fixture(scope="session", params=golden_cases("video_llama"), ids=lambda folder: folder.name)
def case(request) -> Case:
    return Case(request.param)
