import dataclasses

import pytest
from packaging.markers import default_environment

from vidtune.commands.machine import Machine


@pytest.fixture
def machine():
    """Make a healthy machine without a GPU; keywords change single facts."""
    healthy = Machine(
        python=(3, 11, 9),
        markers=default_environment() | {"sys_platform": "linux", "platform_machine": "x86_64"},
        requirements=(
            "torch>=2.11,<2.13",
            "torchvision>=0.26,<0.28",
            "peft>=0.21,<0.22",
            "decord>=0.6,<0.7; sys_platform == 'linux' and platform_machine == 'x86_64'",
            "deepspeed>=0.19,<0.20; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ),
        versions={
            "torch": "2.12.1+cu130",
            "torchvision": "0.27.1+cu130",
            "peft": "0.21.2",
            "decord": "0.6.0",
            "deepspeed": "0.19.8",
        },
        torch_wanted="torch==2.12.1",
        torch_cuda="13.0",
        compiler="/usr/bin/c++",
        ninja=True,
        python_headers=True,
        cores=8,
        ram_gb=64.0,
        disk_free_gb=100.0,
    )
    return lambda **facts: dataclasses.replace(healthy, **facts)
