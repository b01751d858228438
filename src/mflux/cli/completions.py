"""`mflux-completions SHELL`: what bash, zsh or fish needs to complete every command's flags, from the one table."""

import sys
from collections.abc import Callable

from mflux.cli.commands import BY_NAME, COMMANDS, SHORT
from mflux.cli.options import Command, Values
from mflux.errors import MfluxError
from mflux.paths import expand

FILES = {"bash": "mflux.bash", "zsh": "_mflux", "fish": "mflux.fish"}


def completions(values: Values) -> None:
    """Print the script, or write it into a folder.  Raises MfluxError where that takes no files."""
    text = SHELLS[values["shell"]]()
    if "folder" not in values:
        sys.stdout.write(text)
        return
    target = expand(values["folder"], "folder") / FILES[values["shell"]]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MfluxError(
            f"`{target}` cannot be written ({error.strerror})", "choose a folder that you may write to"
        ) from None
    print(target)


def flags(command: Command) -> list[tuple[str, str]]:
    found = [(flag, option.help) for option in command.options if option.is_flag for flag in option.flags.split()]
    return [("--help", "list every flag"), *found]


def bash() -> str:
    cases = "\n".join(
        f'        {name}) flags="{" ".join(flag for flag, _ in flags(command))}" ;;'
        for name, command in BY_NAME.items()
    )
    short = "\n".join(f"            {word}) name={name} ;;" for word, name in SHORT.items())
    return f"""# bash completion of mflux; source it, or put it into ~/.local/share/bash-completion/completions/
_mflux() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} name=${{COMP_WORDS[0]##*/}} flags=""
    COMPREPLY=()
    if [[ $name == mflux ]]; then
        if [[ $COMP_CWORD -eq 1 ]]; then
            COMPREPLY=($(compgen -W "{" ".join(SHORT)}" -- "$cur"))
            return
        fi
        case ${{COMP_WORDS[1]}} in
{short}
        esac
    fi
    case $name in
{cases}
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    else
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}}
complete -o filenames -F _mflux mflux {" ".join(BY_NAME)}
"""


def zsh() -> str:
    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace("'", "'\\''").replace("[", "(").replace("]", ")").replace(":", "\\:")

    def arguments(command: Command) -> str:
        return " ".join(f"'*{flag}[{quoted(words)}]'" for flag, words in flags(command))

    cases = "\n".join(
        f"    {name}) _arguments {arguments(command)} '*:file:_files' ;;" for name, command in BY_NAME.items()
    )
    subcommands = " ".join(f"'{word}:{quoted(BY_NAME[name].summary)}'" for word, name in SHORT.items())
    short = "\n".join(f"      {word}) name={name} ;;" for word, name in SHORT.items())
    return f"""#compdef mflux {" ".join(BY_NAME)}
# zsh completion of mflux; put it into a folder of $fpath
local name=${{words[1]:t}}
if [[ $name == mflux ]]; then
  if (( CURRENT == 2 )); then
    local -a subcommands=({subcommands})
    _describe command subcommands
    return
  fi
  case $words[2] in
{short}
  esac
fi
case $name in
{cases}
esac
"""


def fish() -> str:
    def line(where: str, flag: str, words: str) -> str:
        kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
        return f"complete {where} {kind} -d '{quoted(words)}'"

    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace("'", "\\'")

    lines = ["# fish completion of mflux; put it into ~/.config/fish/completions/"]
    for command in COMMANDS:
        lines += [line(f"-c {command.name}", flag, words) for flag, words in flags(command)]
    for word, name in SHORT.items():
        lines.append(f"complete -c mflux -n __fish_use_subcommand -a {word} -d '{quoted(BY_NAME[name].summary)}'")
        where = f"-c mflux -n '__fish_seen_subcommand_from {word}'"
        lines += [line(where, flag, words) for flag, words in flags(BY_NAME[name])]
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
