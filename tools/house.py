"""The measures of our own tree: `python tools/house.py`.

Prints the longest chain of imports inside the package, cycles, imports that point upwards, how many modules each
command reaches, the longest function, and the lines of each room.  Type-only and function-level imports count too.
"""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "mflux"
# Imports go one way: a room may import rooms that stand further right, and itself.  `images` stands beside.
ROOMS = ("cli", "training", "conditions", "engine", "weights", "models")
BESIDE = {
    "images": ("images", "engine", "errors"),
    "engine": ("images",),
    "conditions": ("images",),
    "training": ("images",),
    "cli": ("images",),
}
LIMITS = {"chain": 10, "reach": 40}


def modules() -> dict[str, Path]:
    """Name and file of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("mflux", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of the package that one module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset((found & set(MODULES)) - {name, "mflux"})


def reach(name: str) -> set[str]:
    """All modules that importing this one can bring in."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += imports(current)
    return seen


def cycles() -> list[set[str]]:
    """Groups of modules that import each other."""
    groups = {frozenset(other for other in reach(name) if name in reach(other)) for name in MODULES}
    return [set(group) for group in groups if len(group) > 1]


@cache
def chain(name: str) -> int:
    """Modules in the longest chain of imports that starts here (0 inside a cycle)."""
    if any(name in group for group in cycles()):
        return 0
    return 1 + max((chain(other) for other in imports(name)), default=0)


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def upward() -> list[str]:
    """Imports that point from a room to one that stands left of it."""
    wrong = []
    for name in MODULES:
        home = room(name)
        for other in imports(name):
            target = room(other)
            if not home or not target or target == home or target in BESIDE.get(home, ()):
                continue
            if home in ROOMS and target in ROOMS and ROOMS.index(target) > ROOMS.index(home):
                continue
            wrong.append(f"{name} -> {other}")
    return sorted(wrong)


def functions() -> list[tuple[int, str]]:
    """Lines and name of every function, longest first."""
    found = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}.{node.name}"))
    return sorted(found, reverse=True)


def lines() -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, path in MODULES.items():
        counts[room(name) or "mflux"] = counts.get(room(name) or "mflux", 0) + len(path.read_text().splitlines())
    return counts


def commands() -> dict[str, int]:
    """How many modules each command reaches: `main` is where all of them start, the others go on from there by name."""
    entries = [name for name in MODULES if name in ("mflux.cli.main", "mflux.cli.draw", "mflux.cli.jobs")]
    return {entry: len(reach(entry)) for entry in entries}


def main() -> None:
    lengths = sorted(length for length, _ in functions())
    print(f"longest import chain  {max(map(chain, MODULES))} (at most {LIMITS['chain']})")
    print(f"cycles                {cycles() or 'none'}")
    print(f"imports upwards       {upward() or 'none'}")
    for entry, count in commands().items():
        print(f"reach of {entry:12s} {count} of {len(MODULES)} modules (below {LIMITS['reach']})")
    median, most = lengths[len(lengths) // 2], lengths[-len(lengths) // 10]
    print(f"functions             {len(lengths)}, median {median} lines, 90 % {most}")
    print(f"longest function      {functions()[0][0]} lines, {functions()[0][1]}")
    for name, count in sorted(lines().items(), key=lambda item: -item[1]):
        print(f"lines of {name:12s} {count}")
    print(f"lines in all          {sum(lines().values())}")


if __name__ == "__main__":
    main()
