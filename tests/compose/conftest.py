"""A compose cluster of its own for the tests, under a project name and port nobody else uses."""

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCAL_BASE = "stairwell/base:bookworm"
SERVICES = ("controlplane", "vmmd", "ds1", "ds2", "ds3", "ds4")
LOCAL_POSTGRES = "stairwell/postgres:bookworm"
LOCAL_PROMETHEUS = "stairwell/prometheus:bookworm"
# What else is brought up for a profile, or for a file beside docker-compose.yml. Of "obs" it is the
# one of which there is an image everywhere.
MORE = {
    "faults": ("ds5", "link"),
    "obs": ("prometheus",),
    "docker-compose.postgres.yml": ("controlplane2", "postgres"),
}
# The images that some of these need, with what they are called and who makes them.
NEEDED = {
    "docker-compose.postgres.yml": (LOCAL_POSTGRES, "PostgreSQL", "postgres"),
    "obs": (LOCAL_PROMETHEUS, "Prometheus", "prometheus"),
}
# A check each ten seconds, and six programs or more that start at once on two cores.
HEALTHY_SECONDS = 90


def run(*command, check=True, seconds=60, env=None, script=None):
    """Runs a command, `script` its input; a failure shows its output."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        input=script,
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


def has_image(name):
    """Whether docker has it here."""
    return run("docker", "image", "inspect", name, check=False).returncode == 0


class Cluster:
    """The containers of one project, by service name."""

    def __init__(self, compose, profiles=(), files=()):
        more = [each for name in (*profiles, *files) for each in MORE.get(name, ())]
        self.services = (*SERVICES, *more)
        self.project = f"stairwell-test-{secrets.token_hex(4)}"
        self._network = f"{self.project}_stairwell"
        self._containers = {}
        named = [word for file in ("docker-compose.yml", *files) for word in ("-f", file)]
        self._compose = (*compose, "-p", self.project, *named)
        self._env = {
            "COMPOSE_PROFILES": ",".join(profiles),
            "STAIRWELL_PORT": "0",
            "STAIRWELL_PORT2": "0",
            "STAIRWELL_PROMETHEUS_PORT": "0",
            "STAIRWELL_TAG": "test",
            **({"STAIRWELL_BASE": LOCAL_BASE} if has_image(LOCAL_BASE) else {}),
            "STAIRWELL_POSTGRES": LOCAL_POSTGRES,
            "STAIRWELL_PROMETHEUS": LOCAL_PROMETHEUS,
        }

    def compose(self, *arguments, **options):
        """Runs one compose command on this project."""
        return run(*self._compose, *arguments, env=self._env, **options)

    def pipe(self, *arguments, into):
        """Runs one, whose output is the input of a command of the shell."""
        words = shlex.join([*self._compose, *arguments])
        return run("bash", "-c", f"set -o pipefail; {words} | {into}", env=self._env)

    def container(self, service):
        """The container's id; its name differs between versions of compose."""
        # Asked once: compose takes half a second, and it is the same one until it is removed.
        if not self._containers.get(service):
            self._containers[service] = self.compose("ps", "-q", service).stdout.strip()
        return self._containers[service]

    def execute(self, service, *command, check=True, script=None):
        """What a command in the service's container prints; `script` is its input."""
        options = ("--interactive",) if script is not None else ()
        done = run(
            "docker", "exec", *options, self.container(service), *command,
            check=check, script=script,
        )  # fmt: skip
        return done.stdout.strip()

    def docker(self, verb, *services):
        """Has docker kill, start, pause, unpause or restart the services' containers."""
        run("docker", verb, *map(self.container, services))

    def cut_off(self, *services):
        """Takes the services off the network: nothing is refused or reset, it is only silent."""
        for service in services:
            run("docker", "network", "disconnect", self._network, self.container(service))

    def join(self, *services):
        """Puts them back, under their names; their addresses may be others than before."""
        for service in services:
            container = self.container(service)
            run("docker", "network", "connect", "--alias", service, self._network, container)

    def address(self, service, port):
        """Where this machine, as the network's gateway, reaches the service now."""
        network = self.inspect(service)["NetworkSettings"]["Networks"][self._network]
        return f"{network['IPAddress']}:{port}"

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
        return self.port_of("controlplane")

    def port_of(self, service, port=55400):
        """Where it reaches the one of this name, and nobody else can."""
        published = self.compose("port", service, str(port)).stdout
        return int(re.fullmatch(r"127\.0\.0\.1:(\d+)\s*", published)[1])

    def stairwell(self, *arguments, service="controlplane", seconds=180, **options):
        """The client, run on this machine as a user runs it."""
        program = Path(sys.executable).parent / "stairwell"
        where = ("-s", "127.0.0.1", "-p", self.port_of(service))
        return run(program, *where, *arguments, seconds=seconds, **options)

    def stairwell_json(self, *arguments):
        """What the client prints with --output json."""
        return json.loads(self.stairwell("--output", "json", *arguments).stdout)


@pytest.fixture(scope="session")
def compose():
    """The command, once the image of this tree is built."""
    found = compose_command()
    Cluster(found).compose("build", seconds=600)
    return found


@pytest.fixture(scope="module")
def cluster(request, compose):
    """The cluster of docker-compose.yml and of what the module adds by `COMPOSE_PROFILES` and
    `COMPOSE_FILES`, up and healthy; gone with its volumes at the end."""
    wanted = [getattr(request.module, name, ()) for name in ("COMPOSE_PROFILES", "COMPOSE_FILES")]
    for each in (*wanted[0], *wanted[1]):
        image, what, how = NEEDED.get(each, ("", "", ""))
        if image and not has_image(image):
            pytest.skip(f"no image of {what}; scripts/docker_host.sh {how} can get or make one")
    made = Cluster(compose, *wanted)
    try:
        made.compose("up", "-d", *made.services, seconds=120)
        made.wait_healthy(*made.services)
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "0", check=False, seconds=120)
