"""The documents tell of what is there: links lead somewhere, and the commands, settings and metrics they name exist."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from freshet.cli import app
from freshet.process import metrics
from freshet.settings import SECRETS, Settings
from prometheus_client.metrics import MetricWrapperBase
from typer.main import get_command

ROOT = Path(__file__).parents[2]
FOLDERS = ("deploy", "feature_repo", "tests", "training", "triton_models", "workers")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(found for folder in FOLDERS for found in (ROOT / folder).rglob("*.md"))])

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
COMMAND = re.compile(r"(?:^|[\s/])freshet ([^|;&#\n]*)")
MAKE = re.compile(r"(?:^|\s)make ([a-z][a-z-]*)")
MODULE = re.compile(r"python -m ([\w.]+)")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
NAMED = re.compile(r"\]\(([^)\s]+\.py)\)((?:(?:,| and)? `\w+`)+)")
SETTING = re.compile(r"FRESHET_([A-Z_]*[A-Z])")
METRIC = re.compile(r"\bfreshet_\w+(?=$|\{)")


def code(document: Path) -> Iterator[str]:
    """The lines of a document's code blocks, a line that goes on with the lines after it, and its code spans."""
    text = document.read_text()
    for _, block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from (span.replace("\n", " ") for span in SPAN.findall(FENCE.sub("", text)))


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_command(words: list[str]) -> str:
    """What is wrong with the words behind `freshet`: a verb or an option that there is not. Empty where nothing is."""
    command: Any = get_command(app)
    while hasattr(command, "commands") and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        verb = words.pop(0)
        if verb not in command.commands:
            return f"no verb {verb}"
        command = command.commands[verb]
    if command.context_settings.get("ignore_unknown_options"):
        return ""
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return ", ".join(sorted(flags - options - {"--help", "-h"}))


def test_there_are_documents() -> None:
    """The tests below cover the documents that a reader finds."""
    assert {"README.md", "CHANGELOG.md", "deploy/README.md", "training/LOG.md", "tests/bench/LOG.md"} <= set(
        map(name, DOCUMENTS)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file or folder, and every anchor names a heading."""
    broken = []
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_names_stand_in_the_files_they_follow(document: Path) -> None:
    """A name in code behind a link to a module is a function or class of that module."""
    missing = []
    for path, names in NAMED.findall(document.read_text()):
        source = (document.parent / path).read_text()
        found = re.findall(r"`(\w+)`", names)
        missing += [f"{path} {word}" for word in found if not re.search(rf"(def|class) {word}\b", source)]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_paths_exist(document: Path) -> None:
    """Every path from the root that stands in code exists."""
    paths = {path for line in code(document) for path in PATH.findall(line)}
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_exist(document: Path) -> None:
    """Every verb and option of `freshet`, target of `make` and module run by `python -m` exists."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for line in code(document):
        wrong += [f"make {target}" for target in MAKE.findall(line) if not {target, f"test-{target}"} & targets]
        wrong += [module for module in MODULE.findall(line) if importlib.util.find_spec(module) is None]
        for command in COMMAND.findall(line):
            why = wrong_command(shlex.split(command.replace("…", "")))
            wrong += [f"freshet {command}: {why}"] if why else []
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_settings_and_metrics_exist(document: Path) -> None:
    """Every `FRESHET_…` is a setting, and every `freshet_…` a metric."""
    known = {
        sample
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        for described in metric.describe()
        for sample in (described.name, f"{described.name}_total")
    }
    lines = list(code(document))
    settings = {found.lower() for line in lines for found in SETTING.findall(line)}
    told = {found for line in lines for found in METRIC.findall(line)} - {"freshet_training"}
    assert settings <= set(Settings.__struct_fields__) | {f"{secret}_file" for secret in SECRETS}
    assert told <= known


def test_ci_runs_the_command_of_the_readme() -> None:
    """The last line of `.ci/run` is the test command exactly as the README gives it."""
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    section = (ROOT / "README.md").read_text().partition("## Two commands\n")[2].partition("\n## ")[0]
    [(_, block)] = FENCE.findall(section)
    assert last in [line.partition("#")[0].strip() for line in block.splitlines()]
