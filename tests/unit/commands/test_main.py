"""The `vidtune` command: mistakes are one message and exit code 1, our own errors keep their traceback."""

import subprocess
import sys
import types

import pytest

from vidtune.commands import main as command
from vidtune.contracts import UserError


@pytest.fixture
def verb(monkeypatch):
    """Register a verb ``try`` whose ``run`` is the function given."""

    def register(run):
        module = types.ModuleType("made_up_verb")
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int, default=0)
        module.run = run
        monkeypatch.setitem(sys.modules, "made_up_verb", module)
        monkeypatch.setitem(command.VERBS, "try", command.Verb("made_up_verb", "made up"))

    return register


def test_a_verb_gets_its_options_and_gives_the_exit_code(verb):
    verb(lambda arguments: arguments.number)
    assert command.main(["try", "--number", "3"]) == 3


def test_a_users_mistake_is_one_message_and_exit_code_1(verb, capsys):
    def run(arguments):
        raise UserError("train.jsonl line 3: no video")

    verb(run)
    assert command.main(["try"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "vidtune: train.jsonl line 3: no video\n" and captured.out == ""


def test_a_mistake_found_while_an_object_is_built_is_that_message_alone(verb, capsys):
    """Hydra wraps what a constructor raises."""

    def run(arguments):
        try:
            raise UserError("model.path=nowhere: there is no such folder")
        except UserError as error:
            raise RuntimeError("Error in call to target") from error

    verb(run)
    assert command.main(["try"]) == 1
    assert capsys.readouterr().err == "vidtune: model.path=nowhere: there is no such folder\n"


def test_our_own_error_is_not_hidden(verb):
    def run(arguments):
        raise ValueError("a bug")

    verb(run)
    with pytest.raises(ValueError, match="a bug"):
        command.main(["try"])


def test_a_missing_package_is_named_with_the_remedy(verb, capsys):
    def run(arguments):
        import package_that_is_not_here  # noqa: F401

    verb(run)
    assert command.main(["try"]) == 1
    assert "'package_that_is_not_here' is not installed. Run `make venv`" in capsys.readouterr().err


def test_ctrl_c_ends_quietly(verb, capsys):
    def run(arguments):
        raise KeyboardInterrupt

    verb(run)
    assert command.main(["try"]) == 130
    assert capsys.readouterr().err == "vidtune: interrupted\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["docter"], "invalid choice: 'docter'"), ([], "required: VERB"), (["try", "--number", "x"], "invalid int")],
)
def test_a_wrong_command_line_exits_with_1_and_says_why(verb, capsys, words, message):
    verb(lambda arguments: 0)
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 1 and message in capsys.readouterr().err


@pytest.mark.parametrize("name", command.VERBS)
def test_every_registered_verb_is_a_module_with_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert not end.value.code and f"usage: vidtune {name}" in capsys.readouterr().out


def test_help_lists_the_verbs_without_loading_torch():
    start = "import sys; from vidtune.commands.main import main"
    program = f"{start}\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "doctor" in done.stdout and done.stdout.endswith("False\n")
