"""Does the tree keep its shape?  Numbers of style.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import house


def test_no_module_imports_itself_over_others():
    assert house.cycles() == []


def test_imports_go_one_way():
    assert house.upward() == []


def test_the_longest_chain_of_imports_is_short():
    assert 3 < max(map(house.chain, house.MODULES)) <= house.LIMITS["chain"]


def test_a_command_reaches_few_modules():
    assert house.commands()
    assert all(count < house.LIMITS["reach"] for count in house.commands().values())
