"""The documentation says what is: its links, paths, commands, names and code are held to the repository."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from dfl_ledger import errors
from dfl_ledger.contracts import CONTRACTS, load
from dfl_ledger.indexer import Indexer
from dfl_node import jobspec
from dfl_node.cli import cli
from dfl_node.cli.start import start
from tests.ledger.fake_chain import FakeChain, JobStory

REPO = Path(__file__).parents[2]
PAGES = (REPO / "README.md", REPO / "CHANGELOG.md", *sorted((REPO / "docs").glob("*.md")))
SOURCES = ("node", "ledger", "apps", "contracts", "tests", "benchmarks", "examples", "docs")
RUN_S = 30.0


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, what stands after the backticks, and its text."""

    page: Path
    info: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}: {self.text.strip().splitlines()[0][:60] if self.text.strip() else ''}"


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page, info.strip(), text) for info, text in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands between single backticks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def table(page: str, first_header: str) -> list[list[str]]:
    """The cells of every table on a page whose first header is this."""
    rows: list[list[str]] = []
    inside = False
    for line in (REPO / "docs" / page).read_text().splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if inside and not set(cells[0]) <= {"-"}:
            rows.append(cells)
        inside = inside or cells[0] == first_header
    return rows


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


# -- links and paths ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_named_exists(page: Path) -> None:
    named = [span for span in spans(page) if re.fullmatch(rf"({'|'.join(SOURCES)})/[\w./-]*", span)]
    assert [path for path in named if not (REPO / path).exists() and "NAME" not in path] == []


def test_every_page_of_docs_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", prose(REPO / "README.md")))
    assert linked == {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"}


def test_every_function_that_the_architecture_names_exists() -> None:
    files = [file for top in ("node", "ledger", "contracts") for file in (REPO / top).rglob("*.*")]
    texts = {file: file.read_text() for file in files if file.suffix in (".py", ".sol")}
    missing = []
    for span in spans(REPO / "docs" / "architecture.md"):
        found = re.fullmatch(r"(\w+)\.(\w+)", span)
        if found is None or found[2] in ("py", "sol", "toml"):
            continue
        holder, member = found.groups()
        owns = re.compile(rf"^(class|library|contract) {holder}\b", re.MULTILINE)
        has = re.compile(rf"(def|function) {member}\b")
        if not any(has.search(t) for f, t in texts.items() if f.stem == holder or owns.search(t)):
            missing.append(span)
    assert missing == []


def test_every_make_target_named_exists() -> None:
    makefile = (REPO / "Makefile").read_text()
    named = {span.split()[1] for page in PAGES for span in spans(page) if re.fullmatch(r"make [a-z-]+", span)}
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


# -- commands ----------------------------------------------------------------------------------------------
def commands() -> Iterator[tuple[str, bool]]:
    """Every `dfl-node` command line, and whether it stands in a block, where it is complete."""
    for page in PAGES:
        for block in blocks(page):
            for line in block.text.splitlines():
                if line.startswith(("dfl-node ", "$ dfl-node ")):
                    yield line.removeprefix("$ "), True
        for span in spans(page):
            if span.startswith("dfl-node "):
                yield span, False


def parse(line: str) -> tuple[click.Command, dict[str, Any]]:
    """By click's own parser, without running or converting anything. Raises click.UsageError."""
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = cli
    context = click.Context(cli, info_name="dfl-node")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no command {words[0]}")
        command, context = found, click.Context(found, parent=context)
        words = words[1:]
    values, rest, _ = command.make_parser(context).parse_args(args=words)
    if rest:
        raise click.UsageError(f"too much: {rest}")
    return command, values


@pytest.mark.parametrize(("line", "complete"), sorted(set(commands())))
def test_every_command_line_parses(line: str, complete: bool) -> None:
    command, values = parse(line)
    if complete:
        assert not isinstance(command, click.Group), "a group alone does nothing"
        missing = [p.name for p in command.params if p.required and values.get(str(p.name)) in (None, ())]
        assert missing == []


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    for line in ("dfl-node job destroy 1", "dfl-node start --offer-relay", "dfl-node status 1"):
        with pytest.raises(click.UsageError):
            parse(line)


def test_the_operators_page_has_every_option_of_start() -> None:
    told = {name for row in table("operator.md", "option") for name in re.findall(r"--[a-z-]+", row[0])}
    real = {name for param in start.params for name in param.opts if name.startswith("--")}
    assert told == real - {"--json", "--debug"}


# -- code --------------------------------------------------------------------------------------------------
PYTHON = [block for block in ALL_BLOCKS if block.info.split()[:1] == ["python"]]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_what_a_python_block_imports_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger with two settled rounds of job 1."""
    path, chain = tmp_path / "ledger.sqlite", FakeChain()
    indexer = Indexer(path, chain.ledger, deployment_key="test", start_block=1)
    story = JobStory(chain)
    story.create()
    settled = []
    for claimable_at in (1000, 2000):
        story.whole_round()
        evidence = story.evidence()
        settled.append((evidence, story.settle(evidence, claimable_at)))
    while indexer.lag():
        indexer.step()
    for evidence, cid in settled:
        assert indexer.add_evidence(evidence, cid)
    indexer.close()
    return path


@pytest.mark.parametrize("block", [b for b in PYTHON if "run" in b.info.split()], ids=str)
def test_a_runnable_block_runs(block: Block, ledger: Path, tmp_path: Path) -> None:
    arguments = [str(ledger), "1"] if "ledger" in block.info.split() else []
    done = subprocess.run(
        [sys.executable, "-c", block.text, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if arguments:
        assert done.stdout.count("as settled") == 2
        assert "NOT" not in done.stdout


# -- names and figures -------------------------------------------------------------------------------------
def test_the_error_classes_are_those_of_the_code() -> None:
    told = {row[0].strip("`"): int(row[1]) for row in table("errors.md", "class")}
    real = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.DflError)
    }
    assert told == real


def test_the_custom_errors_are_those_of_the_contracts() -> None:
    told = [row[0].strip("`") for row in table("errors.md", "error")]
    real = {error.name for name in CONTRACTS for error in load(name).errors.values()}
    assert sorted(told) == sorted(real)


@cache
def spec_rows() -> dict[str, str]:
    """Field -> its default, as the requester's page has them."""
    return {row[0].strip("`"): row[1] for row in table("requester.md", "field")}


def told_value(spec: jobspec.JobSpec, field: str) -> Any:
    """A field's value in the words of TOML."""
    value: Any = spec
    for part in field.replace("async.", "buffer.").split("."):
        value = getattr(value, part if hasattr(value, part) else f"{part}_wei")
    if field == "mode":
        return value.name.lower()
    if isinstance(value, tuple):
        return list(value)
    if field == "reward.shares":
        bps = dataclasses.asdict(value)
        return {name.removesuffix("_bps"): number / 100 for name, number in bps.items() if number}
    return str(value // 10**18) if field == "reward.round_budget" else value


def test_the_job_specs_fields_are_those_of_the_code() -> None:
    parts = {
        "model": jobspec.ModelSpec,
        "training": jobspec.TrainingSpec,
        "round": jobspec.RoundSpec,
        "reward": jobspec.RewardSpec,
        "async": jobspec.BufferSpec,
        "pipeline": jobspec.PipelineSpec,
    }
    real = {field.name for field in dataclasses.fields(jobspec.JobSpec)} - parts.keys() - {"buffer"}
    for part, kind in parts.items():
        real |= {f"{part}.{field.name.removesuffix('_wei')}" for field in dataclasses.fields(kind)}
    real.remove("reward.seal_anchor")  # follows from the keys; nobody writes it
    assert spec_rows().keys() == real


SMALLEST = """
name = "x"
app = "digits"
[model]
name = "cnn"
[training]
rounds = 1
local_steps = 1
batch_size = 1
lr = 0.1
[round]
min_nodes = 5
[reward]
round_budget = 1
"""


IN_WORDS = {  # defaults that depend on other fields, and what they come to in SMALLEST
    "round.quorum": 3,
    "async.size": 3,
    "reward.valuation": "shapley",
    "reward.bond": 33333333333333334,  # wei: twice a third of 5 percent of 1 VNX
    "reward.required_stake": 33333333333333334,
    "model.base": None,
    "model.lora": None,
}


def test_the_job_specs_defaults_are_those_of_the_code() -> None:
    values = tomllib.loads(SMALLEST)
    given = {key for key, value in values.items() if not isinstance(value, dict)}
    given |= {f"{key}.{name}" for key, value in values.items() if isinstance(value, dict) for name in value}
    assert {field for field, default in spec_rows().items() if default == "required"} == given
    for field, default in spec_rows().items():
        mode = field.partition(".")[0] if field.startswith(("async.", "pipeline.")) else "sync"
        spec = jobspec.parse(f'mode = "{mode}"\n' + SMALLEST.replace("batch_size = 1", "batch_size = 4"))
        if field in IN_WORDS:
            assert told_value(spec, field) == IN_WORDS[field], field
            assert not re.fullmatch("`[^`]*`", default), field
        elif default != "required":
            assert tomllib.loads(f"x = {default.strip('`')}")["x"] == told_value(spec, field), field


def test_the_example_is_the_one_on_the_requesters_page() -> None:
    (told,) = (b.text for b in blocks(REPO / "docs" / "requester.md") if b.info == "toml")
    assert tomllib.loads(told) == tomllib.loads((REPO / "examples" / "digits.toml").read_text())
    jobspec.parse(told)


def test_the_gas_figures_are_the_recorded_ones() -> None:
    recorded = json.loads((REPO / "benchmarks" / "gas.json").read_text())
    section = (REPO / "README.md").read_text().partition("| what | gas |")[2].partition("\n\n")[0]
    told = [
        int(number.replace(",", ""))
        for row in section.splitlines()
        for number in re.findall(r"\d[\d,]+", row.split("|")[2] if row.count("|") > 2 else "")
    ]
    assert len(told) >= 5
    assert [gas for gas in told if gas not in recorded.values()] == []


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_the_cost_of_a_round_is_the_recorded_one(page: str) -> None:
    results = json.loads((REPO / "benchmarks/results/round.json").read_text())["results"]
    text = (REPO / page).read_text()
    for row in results:
        cells = (
            str(row["nodes"]),
            f"{row['overhead_s']:.2f}",
            f"{row['cpu_s']:.1f}",
            f"{row['loopback_mb']:.1f}",
        )
        assert f"| {' | '.join(cells)} |" in text
