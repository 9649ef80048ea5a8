"""Profile "obs" of the compose file and its files, as far as they can be judged with none of these
programs at hand: all of them fit each other, the programs, and the dashboard."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.tidy.test_compose_file import DAEMONS, METRICS, POSTGRES, ROOT, SERVICES, in_profile

PORT = METRICS[1].rpartition(":")[2]
DATASOURCES = "/etc/grafana/provisioning/datasources/stairwell.yml"
PROVIDERS = "/etc/grafana/provisioning/dashboards/stairwell.yml"
WATCHERS = ("collector", "grafana", "jaeger", "prometheus")


def files(service):
    """What a service is given of the repository, by its place in the container."""
    mounts = [each.split(":") for each in service.get("volumes", ()) if each.startswith("./")]
    assert all(how == ["ro"] for _, _, *how in mounts)
    return {inside: ROOT / path for path, inside, *_ in mounts}


def read(service, inside):
    return yaml.safe_load(files(SERVICES[service])[inside].read_text())


def default(service):
    """The image, where its variable says nothing."""
    found = re.fullmatch(r"\$\{(STAIRWELL_\w+):-(.+)\}", SERVICES[service]["image"])
    assert found[1] == f"STAIRWELL_{service.upper()}"
    return found[2]


@pytest.mark.parametrize("service", WATCHERS)
def test_it_adds_services_of_pinned_images_and_no_root(service):
    assert in_profile("obs") == set(WATCHERS)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+:v?\d+\.\d+\.\d+", default(service))
    assert re.fullmatch(r"[1-9]\d*:\d+", SERVICES[service]["user"])
    assert "depends_on" not in SERVICES[service]


@pytest.mark.parametrize("services", [SERVICES, POSTGRES], ids=["plain", "postgres"])
def test_the_files_that_they_are_given_exist_and_others_may_read_them(services):
    """Each has a user of its own."""
    given = [
        path for name in WATCHERS if name in services for path in files(services[name]).values()
    ]
    assert given
    for path in given:
        assert path.is_file()
        assert path.stat().st_mode & 0o004
        assert all(folder.stat().st_mode & 0o001 for folder in path.relative_to(ROOT).parents)


def jobs(file):
    return {each["job_name"]: each for each in yaml.safe_load(file.read_text())["scrape_configs"]}


def test_prometheus_reads_every_program_in_the_jobs_of_dashboard_and_rules():
    folder = ROOT / "deploy" / "prometheus"
    config = read("prometheus", "/etc/prometheus/prometheus.yml")
    ours = jobs(folder / "compose.yml")
    assert ours.keys() == jobs(folder / "prometheus.yml").keys()
    assert [f"/etc/prometheus/{name}" for name in config["rule_files"]] == [
        inside
        for inside, path in files(SERVICES["prometheus"]).items()
        if path.name == "alerts.yml"
    ]
    groups = [group for job in ours.values() for group in job["static_configs"]]
    fixed = {target for group in groups for target in group["targets"]}
    groups = [group for job in ours.values() for group in job.get("dns_sd_configs", ())]
    looked_up = {f"{name}:{group['port']}" for group in groups for name in group["names"]}
    behind = in_profile("faults") & set(DAEMONS)
    assert looked_up == {f"{name}:{PORT}" for name in behind}
    assert fixed == {f"{name}:{PORT}" for name in set(DAEMONS) - behind}


def test_it_reads_the_second_control_plane_where_there_is_one():
    job = jobs(ROOT / "deploy/prometheus/compose.yml")["stairwell-controlplane"]
    [named] = [name for group in job["file_sd_configs"] for name in group["files"]]
    given = files(POSTGRES["prometheus"])[f"/etc/prometheus/{named}"]
    assert yaml.safe_load(given.read_text()) == [{"targets": [f"controlplane2:{PORT}"]}]


def test_grafanas_datasource_is_this_prometheus_and_the_dashboards():
    [source] = read("grafana", DATASOURCES)["datasources"]
    url = urlsplit(source["url"])
    assert SERVICES[url.hostname]["ports"][0].endswith(f":{url.port}")
    board = json.loads((ROOT / "deploy/grafana/stairwell.json").read_text())
    [variable] = [each for each in board["templating"]["list"] if each["type"] == "datasource"]
    # Nothing is chosen there, so that Grafana takes the default one of that type.
    assert (variable["query"], variable["current"]) == (source["type"], {})
    assert source["isDefault"] is True
    asked = [
        each for each in (*board["panels"], *board["templating"]["list"]) if "datasource" in each
    ]
    assert {each["datasource"]["uid"] for each in asked} == {f"${{{variable['name']}}}"}
    assert {each["datasource"]["type"] for each in asked} == {source["type"]}
    interval = read("prometheus", "/etc/prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_grafana_shows_the_dashboard_and_lets_nobody_change_anything():
    [provider] = read("grafana", PROVIDERS)["providers"]
    environment = SERVICES["grafana"]["environment"]
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert files(SERVICES["grafana"])[str(home)] == ROOT / "deploy/grafana/stairwell.json"
    assert provider["options"]["path"] == str(home.parent)
    assert provider["allowUiUpdates"] is False
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_the_collector_hands_what_it_is_sent_to_jaeger():
    config = read("collector", SERVICES["collector"]["command"].removeprefix("--config="))
    [(signal, pipeline)] = config["service"]["pipelines"].items()
    assert signal == "traces"
    for kind, names in pipeline.items():
        assert set(names) == config[kind].keys()
    # A limit of memory is of use before anything is kept.
    assert pipeline["processors"][0] == "memory_limiter"
    host, _, port = config["exporters"]["otlp_grpc/jaeger"]["endpoint"].partition(":")
    assert (host, port) == ("jaeger", "4317")
    listens = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    told = re.findall(r"STAIRWELL_TRACES=(\S+)", (ROOT / "docs/compose.md").read_text())
    assert told
    assert set(told) == {f"http://collector:{listens.rpartition(':')[2]}"}


def test_what_is_pulled_for_tests_is_what_the_file_names():
    script = (ROOT / "scripts/docker_host.sh").read_text()
    assert f"readonly PUBLIC_PROMETHEUS={default('prometheus')}\n" in script


@pytest.mark.parametrize("service", WATCHERS)
def test_the_document_tells_of_each_image_and_port(service):
    text = (ROOT / "docs/compose.md").read_text()
    assert f"`STAIRWELL_{service.upper()}`" in text
    assert default(service) in text
    for port in SERVICES[service].get("ports", ()):
        assert f"`127.0.0.1:{port.split(':-')[1].split('}')[0]}`" in text
