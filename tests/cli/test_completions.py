"""Completion scripts and the one `mflux` command, both from the table of commands."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mflux.cli.commands import BY_NAME, COMMANDS, SHORT

UMBRELLA = "import sys; from mflux.cli.main import umbrella; sys.exit(umbrella())"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_flag_of_every_command_is_completed(cli, shell):
    done = cli(shell, command="mflux-completions")
    assert done.code == 0
    for command in COMMANDS:
        assert command.name in done.out
        for option in command.options:
            for flag in option.flags.split() if option.is_flag else ():
                assert (
                    f"-l {flag[2:]} " if shell == "fish" and flag.startswith("--") else flag.lstrip("-")
                ) in done.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_takes_the_script(cli, shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    done = cli(shell, "--dir", "scripts", command="mflux-completions")
    subprocess.run([shell, "-n", done.out.strip()], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["mflux-generate-fill", "--masked"], ["--masked-image-path"]),
        (["mflux", "fi"], ["fill"]),
        (["mflux", "fill", "--masked"], ["--masked-image-path"]),
        (["mflux-info", "note"], ["notes.txt"]),
        (["mflux-save", "--vae"], []),
    ],
)
def test_bash_completes(cli, words, found):
    script = cli("bash", "--dir", ".", command="mflux-completions").out.strip()
    Path("notes.txt").write_text("")
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mflux; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code, "bash", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == found


def mflux(*words):
    return subprocess.run([sys.executable, "-c", UMBRELLA, *words], capture_output=True, text=True)


def test_one_command_has_all_the_others():
    assert SHORT["generate"] == "mflux-generate" and SHORT["fill"] == "mflux-generate-fill"
    assert set(SHORT.values()) == set(BY_NAME)
    listed = mflux("--help").stdout
    assert all(f"  {word} " in listed and BY_NAME[name].summary in listed for word, name in SHORT.items())
    assert "--masked-image-path" in mflux("fill", "--help").stdout
    wrong = mflux("fil")
    assert wrong.returncode == 2 and "did you mean `mflux fill`" in wrong.stderr and wrong.stdout == ""
