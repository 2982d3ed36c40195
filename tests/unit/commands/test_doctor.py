"""`vidtune doctor` on made-up machines: what it calls broken, and what remedy it names."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from vidtune.commands.doctor import run_doctor
from vidtune.commands.machine import Gpu, read_machine
from vidtune.commands.machine_checks import check_machine

RTX4090 = Gpu("NVIDIA GeForce RTX 4090", 25.8, bf16=True)
T4 = Gpu("Tesla T4", 15.8, bf16=False)


def report(machine) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = run_doctor(machine, console)
    return code, console.file.getvalue()


def unfit(machine) -> dict[str, tuple[str, str]]:
    """subject -> (level, found and remedy) of all that is not ok."""
    findings = [finding for finding in check_machine(machine) if finding.level != "ok"]
    assert all(finding.remedy for finding in findings), "a finding without a remedy helps nobody"
    return {finding.subject: (finding.level, f"{finding.found} -> {finding.remedy}") for finding in findings}


def drop(versions, *names):
    return {name: version for name, version in versions.items() if name not in names}


def test_a_healthy_machine_exits_0_with_and_without_gpu(machine):
    for facts in ({}, {"gpus": (RTX4090,), "nvidia_driver": True}):
        code, text = report(machine(**facts))
        assert code == 0 and unfit(machine(**facts)) == {}
        assert "peft 0.21.2" in text and "Nothing is broken" in text


def test_torch_without_torchvision_is_broken(machine):
    healthy = machine()
    code, text = report(machine(versions=drop(healthy.versions, "torchvision")))
    assert code == 1
    assert "torchvision: missing" in text and "make venv" in text


def test_a_torch_that_its_torchvision_was_not_built_for_is_broken(machine):
    versions = machine().versions | {"torch": "2.11.0"}
    level, text = unfit(machine(versions=versions))["torch + torchvision"]
    assert level == "broken" and "torch==2.12.1" in text and "2.11.0" in text


def test_a_package_outside_its_range_is_broken_and_named_with_the_range(machine):
    code, text = report(machine(versions=machine().versions | {"peft": "0.20.0"}))
    assert code == 1 and "peft: 0.20.0, expected <0.22,>=0.21" in text


def test_a_package_that_fails_to_import_is_broken_with_the_reason(machine):
    reason = "RuntimeError: operator torchvision::nms does not exist"
    level, text = unfit(machine(import_errors={"torchvision": reason}))["torchvision"]
    assert level == "broken" and reason in text


def test_decord_is_a_warning_on_linux_and_not_asked_for_elsewhere(machine):
    healthy = machine()
    without = drop(healthy.versions, "decord", "deepspeed")
    assert {name: level for name, (level, _) in unfit(machine(versions=without)).items()} == {
        "decord": "warning",
        "deepspeed": "warning",
    }
    assert report(machine(versions=without))[0] == 0
    mac = healthy.markers | {"sys_platform": "darwin", "platform_machine": "arm64"}
    assert unfit(machine(versions=without, markers=mac)) == {}


@pytest.mark.parametrize(
    ("cuda", "remedy"), [("13.0", "update the NVIDIA driver"), (None, "install torch with CUDA")], ids=["old", "cpu"]
)
def test_a_gpu_that_torch_cannot_see_is_broken(machine, cuda, remedy):
    level, text = unfit(machine(nvidia_driver=True, torch_cuda=cuda))["GPU"]
    assert level == "broken" and remedy in text


def test_a_gpu_without_bf16_is_pointed_to_fp16(machine):
    level, text = unfit(machine(gpus=(T4,)))["GPU 0"]
    assert level == "warning" and "fp16" in text


@pytest.mark.parametrize(
    ("fact", "package"),
    [({"compiler": None}, "g++"), ({"ninja": False}, "ninja"), ({"python_headers": False}, "python3-dev")],
)
def test_what_is_missing_to_build_the_offload_operators_is_named(machine, fact, package):
    level, text = unfit(machine(**fact))["DeepSpeed CPU ops"]
    assert level == "warning" and "offload" in text and package in text


@pytest.mark.parametrize("version", [(3, 10, 1), (3, 13, 0)])
def test_an_unfit_python_is_broken(machine, version):
    assert unfit(machine(python=version))["Python"][0] == "broken"


def test_a_full_disk_is_a_warning(machine):
    assert unfit(machine(disk_free_gb=1.5))["disk"][0] == "warning"


def test_messages_with_brackets_are_printed_as_they_are(machine):
    code, text = report(machine(import_errors={"torch": "OSError: [libc10.so] not found"}))
    assert code == 1 and text.count("[libc10.so]") == 2


def test_this_machine_is_read_without_failing():
    facts = read_machine()
    assert facts.python == sys.version_info[:3]
    assert {"torch", "rich"} <= facts.versions.keys() and not facts.import_errors
    assert facts.torch_wanted is not None and facts.torch_wanted.startswith("torch==")
    assert facts.ram_gb is None or facts.ram_gb > 0.5


def test_the_doctor_runs_where_torch_is_broken(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object file')")
    start = "from vidtune.commands.main import main; sys.exit(main(['doctor']))"
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {start}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "libcudart.so" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
