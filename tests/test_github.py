"""Forms and workflows in .github: what GitHub would refuse, and what they name that is not there."""

from __future__ import annotations

import os
import re
import shlex

import pytest
import yaml

from support import ROOT

FORMS = sorted(set((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PAGES = ("SECURITY.md", "CHANGELOG.md", "docs/faq.md")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_are_what_github_takes(path):
    form = yaml.safe_load(path.read_text())
    assert form.keys() <= {"name", "description", "title", "labels", "body"}
    assert form["name"] and form["description"]
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert asked and all(part["type"] in ("textarea", "input", "dropdown", "checkboxes") for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)
    assert all(part["attributes"]["label"] for part in asked)
    assert any(part.get("validations", {}).get("required") for part in asked)
    for part in form["body"]:
        assert part.keys() <= {"type", "id", "attributes", "validations"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_is_there(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow[True]  # `on`, which YAML reads as a boolean
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= {path.name for path in ROOT.iterdir()}  # make takes a folder for a target that is made
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] and job["steps"], name
        assert set(job.get("needs", "").split()) <= workflow["jobs"].keys()
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
            for line in step.get("run", "").splitlines():
                words = shlex.split(line)
                if words[0] == "make":
                    assert set(words[1:]) <= targets, line
                if words[0].startswith((".", "tests/")):
                    assert os.access(ROOT / words[0], os.X_OK), line


def test_the_whole_check_is_the_repositorys_own():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["everything"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_pages_that_the_forms_name_are_there():
    named = "".join(path.read_text() for path in (*FORMS, ROOT / ".github/PULL_REQUEST_TEMPLATE.md"))
    for page in PAGES:
        assert page in named and (ROOT / page).is_file()
