"""The image and ``compose.yaml``: valid by their schema, installed by ``make``, with options that exist."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hydra import compose, initialize_config_dir
from mlflow.cli import server
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.config import schema
from pipeline.config.compose import config_root
from pipeline.config.help import COMMANDS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
PAGE = (ROOT / "docs/how-to/run-in-containers.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def validator() -> jsonschema.protocols.Validator:
    """Validator of the Compose specification's own schema."""
    schema = json.loads((resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.mark.parametrize(
    "document", [COMPOSE, *BLOCKS], ids=["compose.yaml", *(f"block {i}" for i in range(len(BLOCKS)))]
)
def test_it_is_valid_by_the_schema(validator, document):
    validator.validate(document)
    # And the schema refuses a key that does not exist.
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**document, "services": {"sweep": {"comand": []}}})


def strings(value: Any) -> list[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if isinstance(value, str) else [text for part in inner for text in strings(part)]


def test_all_volumes_services_and_variables_of_a_service_exist():
    services = COMPOSE["services"]
    for service in services.values():
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and services[other]["healthcheck"]
    # A variable has a default, or the message that Compose stops with says where to set it.
    variables = re.findall(r"\$\{(\w+)([^}]*)\}", " ".join(strings(COMPOSE)))
    assert {name for name, _ in variables} == {"POSTGRES_PASSWORD", "GEBM_CONF"}
    assert all(rest.startswith((":-", ":?write ")) for _, rest in variables)
    assert set(re.findall(r'^(?:echo ")?([A-Z_]+)=', PAGE, re.MULTILINE)) == {name for name, _ in variables}
    for text in strings(COMPOSE):
        for host in re.findall(r"(?:https?://|@)([a-z]+)[:/]", text):
            assert host in services


def test_the_sweep_of_compose_is_a_command_line_of_the_pipeline():
    command, *keys = COMPOSE["services"]["sweep"]["command"]
    assert command in COMMANDS
    words = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", key) for key in keys]
    with initialize_config_dir(str(config_root()), version_base="1.3"):
        config = OmegaConf.to_container(compose(schema.CONFIG_NAME, overrides=words))
    assert config["name"] == "digits" and config["tracking"]["uri"] == "http://mlflow:5000"
    # The server listens at that port, and answers requests to that host.
    options = COMPOSE["services"]["mlflow"]["entrypoint"]
    assert "--port=5000" in options and any("mlflow:5000" in one for one in options if "--allowed-hosts" in one)


def test_options_of_the_server_exist():
    program, verb, *options = COMPOSE["services"]["mlflow"]["entrypoint"]
    assert (program, verb) == ("mlflow", "server")
    known = {name for parameter in server.params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known
    assert not any("PASSWORD" in option for option in options)


def requirements(*extras: str) -> set[str]:
    """Names of all packages that extras of the project install."""
    names: set[str] = set()
    left = [Requirement(text) for extra in extras for text in EXTRAS[extra]]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name == "gebm-pipeline":
            left += [Requirement(text) for extra in requirement.extras for text in EXTRAS[extra]]
        elif name not in names:
            names.add(name)
            try:
                further = metadata.requires(requirement.name) or []
            except metadata.PackageNotFoundError:
                continue
            for text in map(Requirement, further):
                if text.marker is None or any(text.marker.evaluate({"extra": e}) for e in requirement.extras or {""}):
                    left.append(text)
    return names


def test_the_image_is_installed_by_make_without_tools_for_tests():
    runs = [" ".join(line.split()[1:]) for line in DOCKERFILE.splitlines() if line.startswith("RUN")]
    [install] = [run for run in runs if "pip" in run.lower() or "make" in shlex.split(run)[:3]]
    words = shlex.split(install)
    assert words[:3] == ["PIP_NO_CACHE_DIR=1", "make", "install"] and words[3].startswith("EXTRAS=")
    extras = words[3].removeprefix("EXTRAS=").split(",")
    assert "'.[$(EXTRAS)]'" in (ROOT / "Makefile").read_text()
    assert {"s3", "gcs", "postgres"} == set(extras)
    tools = {canonicalize_name(Requirement(text).name) for text in EXTRAS["test"]} - {"gebm-pipeline"}
    assert "pytest" in tools and not tools & requirements(*extras)
    assert "pytest" in requirements("test")


def test_all_files_that_the_image_copies_exist_and_are_enough_for_make():
    copied = {word for line in DOCKERFILE.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]}
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"Makefile", "pyproject.toml", "constraints.txt", project["project"]["readme"], *build["packages"]}
    assert needed | set(build["force-include"]) <= copied


def test_commands_of_the_page_are_commands_of_the_image():
    """The entrypoint gets one of the project's commands after the image's name."""
    assert 'ENTRYPOINT ["gebm"]' in DOCKERFILE
    lines = PAGE.replace("\\\n", " ").splitlines()
    ran = [line for line in lines if line.startswith("docker run")]
    verbs = [re.search(r" gebm (\S+)", line)[1] for line in ran]
    verbs += [verb for line in lines for verb in re.findall(r"docker compose run --rm sweep (\S+)", line)]
    assert len(verbs) >= 7 and set(verbs) <= {"--help", *COMMANDS}
