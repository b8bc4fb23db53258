"""Schemathesis reads /openapi.json and asks what it says may be asked, and what it says may not.

No answer may be an error of the server's, and none may have a status, a content type or a body that the document does not
have. How much is asked stands in config/schemathesis.toml.
"""

import re
import shutil
import subprocess

import pytest

from conftest import copy_models
from gate import HERE, Gate


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A server of their own: models come and go under it."""
    folder = tmp_path_factory.mktemp("openapi")
    shutil.copy(HERE / "config" / "explicit.yaml", folder)
    copy_models(folder / "models")
    server = Gate(folder / "explicit.yaml", folder / "log")
    yield server
    server.stop()


@pytest.mark.parametrize("about, parameters", [
    # Whatever names may stand in a path.
    ("anything", ""),
    # A model that there is, so that bodies are looked at.
    ("one model", '[parameters]\n"path.model" = "animals"\n"path.version" = "1"\n'),
])
def test_the_server_answers_as_its_document_says(victim, tmp_path, about, parameters):
    config = tmp_path / "schemathesis.toml"
    config.write_text(parameters + (HERE / "config" / "schemathesis.toml").read_text())
    command = ["schemathesis", "--config-file", str(config), "run", f"{victim.url}/openapi.json", "--no-color"]
    result = subprocess.run(command, cwd=tmp_path, timeout=600, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    # It says how many operations it asked: none of them would be a success too.
    asked = re.search(r"(\d+) selected / (\d+) total", result.stdout)
    assert asked and int(asked[1]) == int(asked[2]) > 40, result.stdout
