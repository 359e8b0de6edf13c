import json
import subprocess

import pytest
import torch

from lmtrain.training import provenance
from lmtrain.training.provenance import device_facts, git_facts, session_facts


def git(directory, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    subprocess.run(["git", "-C", directory, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("one\n")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_the_commit_and_whether_anything_differs_from_it_are_told(checkout):
    clean = git_facts(checkout / "package")
    assert len(clean["commit"]) == 40
    assert clean["difference_sha256"] is None
    (checkout / "package" / "code.py").write_text("two\n")
    changed = git_facts(checkout / "package")
    assert changed["commit"] == clean["commit"]
    assert len(changed["difference_sha256"]) == 64


def test_a_package_inside_a_checkout_that_does_not_track_it_has_no_commit(checkout):
    (checkout / "site-packages").mkdir()
    (checkout / "site-packages" / "code.py").touch()
    assert git_facts(checkout / "site-packages") is None


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 5)])
def test_without_git_or_with_one_that_hangs_there_is_no_commit(checkout, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(provenance.subprocess, "run", fail)
    assert git_facts(checkout / "package") is None


def test_the_facts_are_plain_json():
    facts = session_facts(["lmtrain"]) | device_facts(torch.device("cpu"))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
