"""Every golden case of the family, put together once per session."""

import pytest

from tests.families.golden import golden_cases
from tests.families.video_chatgpt.case import Case


@pytest.fixture(scope="session", params=golden_cases("video_chatgpt"), ids=lambda folder: folder.name)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param.name))
