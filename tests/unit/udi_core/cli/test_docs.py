"""docs/cli.md names every command and every option that there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

from udi_core import config
from udi_core.cli import completion, parser

DOCS = Path(__file__).resolve().parents[4] / "docs"
TEXT = (DOCS / "cli.md").read_text()
MANUAL = "\n".join(path.read_text() for path in sorted(DOCS.rglob("*.md")))
ADAPTERS = parser.plugins()
WORDS = list(completion.words({**parser.COMMANDS, **ADAPTERS}))


def test_every_command_and_option_is_documented() -> None:
    """Commands on the page, and their options there too; those of adapters anywhere in the manual."""
    missing = []
    for each in WORDS:
        if not re.search(rf"\budi {each.path}\b", TEXT):
            missing.append(f"udi {each.path}")
        text = MANUAL if each.path.partition(" ")[0] in ADAPTERS else TEXT
        options = {spelling for spellings, _, _ in each.options for spelling in spellings} - {"-h", "--help"}
        missing += [
            f"{each.path} {option}" for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)
        ]
    assert sorted(missing) == []


def test_no_command_is_documented_that_there_is_not() -> None:
    named = set(re.findall(r"`udi ([a-z]+)", TEXT))
    assert named <= {each.path for each in WORDS}


def test_every_setting_is_documented() -> None:
    page = (DOCS / "configuration.md").read_text()
    assert [key for key in config._KEYS if f"`{key}`" not in page] == []
    assert [name for name in config._ENVIRONMENT if f"`{name}`" not in page] == []
