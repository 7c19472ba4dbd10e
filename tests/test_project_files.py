"""Files of the project that no other test reads: version, workflows, the action, templates."""

import re
from pathlib import Path

import pytest
import yaml

import lsm_probe

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "lsm-probe" / "action.yml"
YAML_FILES = [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


def test_the_version_is_the_same_everywhere(lsm_probe_command):
    assert lsm_probe_command("--version") == (0, f"{lsm_probe.__version__}\n", "")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lsm_probe.__version__
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[0] == lsm_probe.__version__


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_files_can_be_parsed(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_action_is_the_one_that_the_docs_show():
    assert f"```yaml\n{ACTION.read_text()}```" in (ROOT / "docs" / "ci.md").read_text()


def test_workflows_use_inputs_and_files_that_exist():
    inputs = yaml.safe_load(ACTION.read_text())["inputs"]
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                if step.get("uses") == "./.github/actions/lsm-probe":
                    assert step["with"].keys() <= inputs.keys()
                    assert {name for name, one in inputs.items() if one.get("required")} <= step["with"].keys()
                    assert (ROOT / step["with"]["baseline"]).is_file()
                for script in re.findall(r"\.ci/[\w-]+", step.get("run", "")):
                    assert (ROOT / script).is_file()


def test_files_that_the_code_tour_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:lsm_probe/|[a-z]+/)[\w/]+\.py)`", text))
    assert len(named) > 15
    assert [
        name
        for name in named
        if "NAME" not in name and not any((base / name).is_file() for base in (ROOT, ROOT / "lsm_probe"))
    ] == []
