"""What README.md and docs/ say: links lead somewhere, commands are understood, tables are those of the records."""

import re
import shlex
from pathlib import Path

import pytest

from report import __main__ as report
from run import settings
from sweep.__main__ import make_parser

ROOT = Path(__file__).parent.parent
PAGES = [
    path for pattern in ("*.md", "docs/*.md", "results/**/*.md", "data/*/*.md") for path in sorted(ROOT.glob(pattern))
]
TABLE = re.compile(r"<!-- (python -m report table [^\n]*) -->\n(.*?)\n<!-- end -->", re.DOTALL)


def name_of(path):
    return str(path.relative_to(ROOT))


def commands(page):
    """The command lines in its fenced blocks, as words, continued ones joined, without comments."""
    for block in page.read_text().split("\n```")[1::2]:
        for line in block.replace("\\\n", " ").splitlines()[1:]:
            if re.match(r"(\S*python|\./\S+) ", line):
                yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'(?:src|srcset|href)="([^"#]+)"', text)
    missing = [it for it in targets if "://" not in it and not (page.parent / it).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands(page):
    for words in commands(page):
        if "main.py" in words[:2] and {"--model", "--data_file"} & set(words):
            settings.parse(words[words.index("main.py") + 1 :])  # raises UserError
        elif words and words[0].endswith("_examples.sh"):
            assert (ROOT / words[0]).is_file()
            make_parser().parse_intermixed_args(["--commands", "-", *words[1:]])


def test_a_command_was_found():
    assert sum("main.py" in words[:2] for page in PAGES for words in commands(page)) >= 3


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command, table in TABLE.findall(page.read_text()):
        assert report.main(command.split()[3:]) == 0
        assert capsys.readouterr().out.strip() == table.strip(), f"{command}: print it anew"
