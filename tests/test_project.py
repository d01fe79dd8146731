"""The files around the code agree with each other: requirements, pyproject, workflow, set-up script."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lines(name):
    return [line.strip() for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def test_pyproject_is_in_step_with_the_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(project["dependencies"]) == sorted(lines("requirements.txt"))
    extras = project["optional-dependencies"]
    assert sorted(need for group in extras.values() for need in group) == sorted(lines("requirements-extra.txt"))
    assert {"video", "export", "trackers", "dev"} <= extras.keys()


def test_every_package_of_the_clone_is_installed():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {word.rstrip("*") for word in found["packages"]["find"]["include"]}
    assert packages == {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests", "scripts"} | packages
    assert all((ROOT / package).is_dir() for package in packages)
    assert {path.stem for path in ROOT.glob("*.py")} == set(found["py-modules"])


INDEX = "https://example.org/cpu"


@pytest.mark.parametrize("index", (True, False))
def test_setup_for_a_cpu(index, tmp_path):
    """With a Python that only notes what it is asked to install."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$*" >> {tmp_path}/asked\n'
        f'for word in "$@"; do case $word in /dev/fd/*) cat "$word" >> {tmp_path}/packages;; esac; done\n'
    )
    python.chmod(0o755)
    env = {**os.environ, "VIRTUAL_ENV": str(tmp_path)}
    env = {k: v for k, v in env.items() if not k.startswith("RETORT")} | (
        {"RETORT_TORCH_INDEX": INDEX} if index else {}
    )
    done = subprocess.run(
        ["bash", "scripts/setup.sh", "--cpu"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text()
    assert (f"torch torchvision --index-url {INDEX}" in asked) == index
    packages = (tmp_path / "packages").read_text()
    assert "numpy" in packages and "nvidia" not in packages


def test_workflow_runs_the_script_on_both_pythons():
    yaml = pytest.importorskip("yaml", reason="needs pyyaml, of requirements-extra.txt")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    (job,) = jobs.values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert any(".ci/run" in step.get("run", "") for step in job["steps"])
    assert all(
        (ROOT / word).is_file() for step in job["steps"] for word in re.findall(r"bash (\S+)", step.get("run", ""))
    )
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        yaml.safe_load(form.read_text())


def test_a_commit_is_checked_like_a_pull_request():
    """pre-commit's hooks run what check.sh runs."""
    yaml = pytest.importorskip("yaml", reason="needs pyyaml, of requirements-extra.txt")
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local", "nothing is downloaded"
    modules = [re.search(r"-m (\S+)( check| format)?", hook["entry"]).group() for hook in repo["hooks"]]
    script = (ROOT / "scripts" / "check.sh").read_text()
    assert modules == [m.group() for m in re.finditer(r"-m (\S+)( check| format)?", script)]


def test_modules_that_pages_run_are_programs():
    """`python -m` of a module without a program ends without a word and without a result."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    named = {name for page in pages for name in re.findall(r"python3? -m ([\w.]+)", page.read_text())}
    files = {name: ROOT / f"{name.replace('.', '/')}.py" for name in named}
    ours = {name: path.read_text() for name, path in files.items() if path.is_file()}
    assert ours and all("__main__" in text for text in ours.values()), sorted(ours)
