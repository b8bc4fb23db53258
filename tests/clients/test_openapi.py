"""Schemathesis reads /openapi.json and asks what it says may be asked, and what it says may not.

No answer may be an error of the server's, and none may have a status, a content type or a body that the document does not
have. How much is asked stands in config/schemathesis.toml.
"""

import re
import subprocess

import pytest

from conftest import changeable
from gate import HERE


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A server of its own: models come and go under it."""
    yield from changeable(tmp_path_factory.mktemp("openapi"))


def ask(server, folder, parameters=""):
    """Asks for everything that the document of a server describes."""
    config = folder / "schemathesis.toml"
    config.write_text(parameters + (HERE / "config" / "schemathesis.toml").read_text())
    command = ["schemathesis", "--config-file", str(config), "run", f"{server.url}/openapi.json", "--no-color"]
    result = subprocess.run(command, cwd=folder, timeout=600, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    # None that is asked would be a success too.
    asked = re.search(r"(\d+) selected / (\d+) total", result.stdout)
    assert asked and int(asked[1]) == int(asked[2]) > 40, result.stdout


def test_whatever_names_may_stand_in_a_path_while_models_come_and_go(victim, tmp_path):
    ask(victim, tmp_path)


def test_bodies_for_a_model_that_there_is(gate, tmp_path):
    ask(gate, tmp_path, '[parameters]\n"path.model" = "mlp_4_16_3"\n"path.version" = "1"\n')
