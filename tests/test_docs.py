"""Links of the documents lead somewhere, and the commands that they name exist."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ["*.md", "docs/**/*.md", "recipes/**/*.md", "vidgen_ray/**/*.md"]
PAGES = sorted(path for place in PLACES for path in ROOT.glob(place))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            yield f"{link}: there is no {target}"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: {target.name} has no such heading, but {sorted(anchors(target))}"


def commands(page: Path, program: str) -> list[str]:
    """What follows `program` in code, up to the end of its line; `\\` joins lines."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    start = rf"(?:^|[ ('/]){program} +(.*?)(?:  +#.*| *[;&|>].*)?$"
    return [found[1] for line in lines if (found := re.search(start, line))]


def unknown_words(line: str, command: Any) -> Iterator[str]:
    """Subcommands and options of a `vidgen` line that the command line does not have."""
    words = line.split()
    while hasattr(command, "commands"):  # a group
        if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            return  # prose such as `vidgen ...`
        name = words.pop(0)
        if name not in command.commands:
            yield name
            return
        command = command.commands[name]
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    for word in re.findall(r"(?:^|[ \[(|])(--[a-z][a-z-]*)", " ".join(words)):
        if word not in {*options, "--help"}:
            yield f"{command.name} {word}"


@pytest.fixture(scope="module")
def vidgen() -> Any:
    from typer.main import get_command

    from vidgen_ray.cli import app

    return get_command(app)


def test_the_checks_find_what_is_wrong(tmp_path: Path, vidgen: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n[a](#one-two-three) [b](#four) [c](gone.md)\n")
    assert [problem.split(":")[0] for problem in broken_links(page)] == ["#four", "gone.md"]
    block = "```\nvidgen batch x.jsonl \\\n    --outptu out  # --no\n```\n"
    page.write_text(block + "`.venv/bin/vidgen bath`")
    lines = commands(page, "vidgen")
    assert [word for line in lines for word in unknown_words(line, vidgen)] == [
        "batch --outptu",
        "bath",
    ]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_vidgen_commands_and_options_exist(page: Path, vidgen: Any) -> None:
    if page.name != "CHANGELOG.md":  # it also names removed files
        lines = commands(page, "vidgen")
        assert [word for line in lines for word in unknown_words(line, vidgen)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_targets_and_programs_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[0] for line in commands(page, "make")}
    assert {name for name in named if re.fullmatch(r"[a-z-]+", name)} <= targets
    text = re.sub(r"`[^`]*git show[^`]*`", "", page.read_text())
    files = re.findall(r"\b((?:benchmarks|scripts|jobs|recipes/nano)/\w+\.(?:py|sh))\b", text)
    modules = re.findall(r"python3? -m ((?:benchmarks|recipes|scripts)\.[\w.]+)", text)
    files += [module.rstrip(".").replace(".", "/") + ".py" for module in modules]
    assert [name for name in files if not (ROOT / name).exists()] == []


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text().split("## Where do I add")[1]


def test_the_table_of_contributing_names_files_and_what_is_in_them() -> None:
    file, num_names = None, 0
    for word in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", CONTRIBUTING, flags=re.DOTALL)):
        if re.fullmatch(r"[\w/]+\.(?:py|yml|json|md)", word):
            found = [root / word for root in (ROOT / "vidgen_ray", ROOT) if (root / word).is_file()]
            assert found, f"there is no {word}"
            file = found[0]
        elif file and re.fullmatch(r"\w+", word):
            num_names += 1
            assert re.search(rf"\b{word}\b", file.read_text()), f"{file} has no {word}"
    assert num_names > 20


def tree_paths(tree: str) -> Iterator[Path]:
    """The files and folders that an indented tree names before its explanations."""
    folders = {0: ROOT}
    for line in tree.strip().splitlines():
        depth = len(line) - len(line.lstrip())
        names = re.split(r" {2,}", line.strip())[0].split()
        if not all(re.fullmatch(r"[\w.]+\.\w+|Dockerfile|[\w/]+/", name) for name in names):
            names = names[:1]  # one space before the explanation
        for name in names:
            yield folders[depth] / name
        folders[depth + 2] = folders[depth] / names[0]


def test_the_tree_of_contributing_is_there() -> None:
    paths = list(tree_paths(CONTRIBUTING.split("```")[1]))
    assert len(paths) > 60
    assert [str(path) for path in paths if not path.exists()] == []
