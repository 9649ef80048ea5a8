"""A compose cluster of its own for the tests, under a project name and port nobody else uses."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCAL_BASE = "stairwell/base:bookworm"
SERVICES = ("controlplane", "vmmd", "ds1", "ds2", "ds3", "ds4")
# A check each five seconds, and six programs that start at once on two cores.
HEALTHY_SECONDS = 90


def run(*command, check=True, seconds=60, env=None):
    """Runs a command; a failure shows its output."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if check and done.returncode:
        pytest.fail(f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def compose_command():
    """`docker compose` or `docker-compose`, whichever is here; skips where docker cannot run."""
    if not shutil.which("docker"):
        pytest.skip("docker is not installed; scripts/docker_host.sh up can install it on Debian")
    if run("docker", "info", check=False).returncode:
        pytest.skip("no docker daemon answers; scripts/docker_host.sh up can start one")
    if run("docker", "compose", "version", check=False).returncode == 0:
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    pytest.skip("docker has no compose")


class Cluster:
    """The containers of one project, by service name."""

    services = SERVICES

    def __init__(self, compose):
        self.project = f"stairwell-test-{secrets.token_hex(4)}"
        self._compose = (*compose, "-p", self.project)
        has_local = run("docker", "image", "inspect", LOCAL_BASE, check=False).returncode == 0
        self._env = {
            "STAIRWELL_PORT": "0",
            "STAIRWELL_TAG": "test",
            **({"STAIRWELL_BASE": LOCAL_BASE} if has_local else {}),
        }

    def compose(self, *arguments, **options):
        """Runs one compose command on this project."""
        return run(*self._compose, *arguments, env=self._env, **options)

    def container(self, service):
        """The container's id; its name differs between versions of compose."""
        return self.compose("ps", "-q", service).stdout.strip()

    def execute(self, service, *command):
        """What a command in the service's container prints."""
        return run("docker", "exec", self.container(service), *command).stdout.strip()

    def inspect(self, service):
        """What docker knows of the service's container."""
        return json.loads(run("docker", "inspect", self.container(service)).stdout)[0]

    def health(self, service):
        """healthy, unhealthy or starting, or the state of a container that does not run."""
        state = self.inspect(service)["State"]
        return state["Health"]["Status"] if state["Status"] == "running" else state["Status"]

    def wait_healthy(self, *services):
        """Waits until docker calls every one of them healthy."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        while True:
            found = {service: self.health(service) for service in services}
            if set(found.values()) == {"healthy"}:
                return
            if time.monotonic() > deadline:
                pytest.fail(f"not healthy: {found}\n{self.logs()}")
            time.sleep(0.5)

    def logs(self):
        """The last lines of everybody."""
        done = self.compose("logs", "--no-color", "--tail", "40", check=False)
        return done.stdout + done.stderr

    @property
    def port(self):
        """Where this machine reaches the control plane."""
        published = self.compose("port", "controlplane", "55400").stdout
        return int(re.fullmatch(r".*:(\d+)\s*", published, re.DOTALL)[1])

    def stairwell(self, *arguments, check=True, seconds=180):
        """The client, run on this machine as a user runs it."""
        program = Path(sys.executable).parent / "stairwell"
        return run(
            program, "-s", "127.0.0.1", "-p", self.port, *arguments, check=check, seconds=seconds
        )

    def stairwell_json(self, *arguments):
        """What the client prints with --output json."""
        return json.loads(self.stairwell("--output", "json", *arguments).stdout)


@pytest.fixture(scope="session")
def cluster():
    """The cluster of docker-compose.yml, up and healthy; gone with its volumes at the end."""
    made = Cluster(compose_command())
    try:
        made.compose("build", seconds=600)
        made.compose("up", "-d", seconds=120)
        made.wait_healthy(*SERVICES)
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "5", check=False, seconds=120)
