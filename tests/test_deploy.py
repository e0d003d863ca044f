"""What runs Corral elsewhere: the image's recipe, compose files, Kubernetes, recipes, as far as files go.

There is no container engine here. Kubernetes' own kinds are held against its published schemas; the rest
against what it must agree with: the settings, the metrics, the ports, the files in this repository.
"""

from __future__ import annotations

import fnmatch
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from corral import errors
from corral.formats.status import DOCUMENT_BYTES_MAX, ModelState
from corral.metrics import Metrics
from corral.settings import DECLARATIONS, load
from corral.settings.children import inheritable
from corral.settings.places import runtime_directory
from tests.conftest import StartCorral
from tests.end_to_end.talk import CHAT, chat, content
from tests.support import ROOT, ask, free_port, platform_row, repository_files, strangers_environment

DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
VARIABLES = {name for row in DECLARATIONS for name in row.variables}
# Not ours, and handed on to the engines.
OF_CUDA = {"CUDA_CACHE_PATH"}
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.monitoring.yml")
ALL_COMPOSE_FILES = (*COMPOSE_FILES, "deploy/docker-compose.gpu.yml", "deploy/docker-compose.host.yml")
KUBERNETES = DEPLOY / "kubernetes"
OF_OPERATORS = {"ServiceMonitor", "ScaledObject", "Kustomization"}


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# The image ----------------------------------------------------------------------------------------


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of this kind, continued lines joined."""
    text = re.sub(r"\\\n", " ", DOCKERFILE)
    return re.findall(rf"^{name} +(.*)$", text, re.MULTILINE)


def test_the_image_is_built_on_the_engines_own_and_another_may_be_named() -> None:
    assert instructions("ARG") == ["ENGINE=ghcr.io/ggml-org/llama.cpp:server-cuda"]
    assert [image.split()[0] for image in instructions("FROM")] == ["${ENGINE}"] * 2


def test_what_the_image_copies_is_in_the_repository_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert "*" in ignored
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            for name in line.split()[:-1]:
                assert (ROOT / name).exists()
                assert any(fnmatch.fnmatch(name, pattern) for pattern in kept), (
                    f"{name} is not sent to the build"
                )


def test_the_image_does_not_say_by_its_labels_that_it_is_llama_cpp() -> None:
    [line] = instructions("LABEL")
    labels = dict(pair.split("=", 1) for pair in shlex.split(line))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_ours = {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": project["version"],
    }
    # The others that images commonly have: true of the base alone, if it were not for these.
    emptied = dict.fromkeys(("revision", "created", "source", "url"), "")
    assert labels == {
        f"org.opencontainers.image.{name}": value for name, value in (of_ours | emptied).items()
    }


def test_the_image_runs_as_somebody_and_starts_the_entrypoint() -> None:
    assert instructions("USER")[-1] == "10001"
    assert instructions("ENTRYPOINT") == ['["/app/entrypoint.sh"]']
    assert instructions("EXPOSE") == ["8000 8001"]
    assert os.access(ROOT / "entrypoint.sh", os.X_OK)
    assert "--require-hashes" in DOCKERFILE


def test_the_image_checks_its_health_with_a_program_that_it_has() -> None:
    [line] = instructions("HEALTHCHECK")
    python, program = json.loads(line.partition("CMD ")[2])
    assert python == "python3"
    # Wherever a container is told to begin, as by `docker run --workdir`.
    [place] = instructions("WORKDIR")[-1:]
    relative = Path(program).relative_to(place)
    assert (ROOT / relative).exists()
    assert relative.parts[0] in " ".join(instructions("COPY")).split()
    assert "--timeout=3s" in line  # as tests/test_health_check.py allows


def test_what_cuda_compiles_is_kept_with_the_data_and_engines_are_told_so() -> None:
    [line] = instructions("ENV")
    environment = dict(pair.split("=", 1) for pair in line.split())
    assert environment["CUDA_CACHE_PATH"] == "/data/cuda"
    assert inheritable(environment).items() >= {"CUDA_CACHE_PATH": "/data/cuda"}.items()


# Compose ------------------------------------------------------------------------------------------


def services() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in COMPOSE_FILES:
        found |= read_yaml(ROOT / name)["services"]
    return found


def test_compose_has_the_services_and_the_ports_that_people_expect() -> None:
    found = services()
    assert found.keys() == {"gateway", "redis", "prometheus", "grafana"}
    published = {
        name: [port.rpartition(":")[2] for port in each.get("ports", [])] for name, each in found.items()
    }
    assert published == {
        "gateway": ["8000", "8001"],
        "redis": [],
        "prometheus": ["9090"],
        "grafana": ["3000"],
    }
    assert found["gateway"]["environment"].keys() <= VARIABLES
    # Whoever wants it for this machine alone gets it so in a container, too.
    assert all(port.startswith("${GATEWAY_HOST:+${GATEWAY_HOST-}:}") for port in found["gateway"]["ports"])


@pytest.mark.parametrize("name", ALL_COMPOSE_FILES)
def test_compose_files_fit_the_published_schema(name: str) -> None:
    validator = Path(sys.executable).with_name("check-jsonschema")
    command = [str(validator), "--builtin-schema", "vendor.compose-spec", str(ROOT / name)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ALL_COMPOSE_FILES)
def test_compose_has_nothing_to_warn_of_where_nothing_is_set(name: str) -> None:
    """It warns of each variable that has neither a value nor a default, at every command."""
    assert re.findall(r"\$\{\w+\}|\$\w", (ROOT / name).read_text(encoding="utf-8")) == []


# What .env.example shows of files that somebody must have put there.
SOMEBODYS_FILES = {"TLS_CERT_FILE", "TLS_KEY_FILE", "MODEL_PATH", "MODEL_NAME"}


def test_the_gateway_in_a_container_finds_its_places_whatever_dotenv_has_for_the_outside(
    tmp_path: Path,
) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    dotenv = dict(re.findall(r"^#([A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert dotenv.keys() > SOMEBODYS_FILES
    outside = {name: value for name, value in dotenv.items() if name not in SOMEBODYS_FILES}
    inside = outside | services()["gateway"]["environment"]
    # The image's engine is not here, and load() wants one that is.
    loaded = load(inside | {"HOME": str(tmp_path), "LLAMA_SERVER_PATH": sys.executable}, cwd=tmp_path)
    assert inside["LLAMA_SERVER_PATH"] == "/app/llama-server"
    assert (loaded.server.host, loaded.server.port, loaded.server.health_port) == (None, 8000, 8001)
    paths = loaded.paths
    assert (str(paths.data), str(paths.models), paths.config_file) == ("/data", "/models", None)
    assert paths.runtime == runtime_directory({}, loaded.instance_id, 8000)
    assert (str(loaded.access.keys_file), str(loaded.logs.directory)) == ("/data/api_keys.txt", "/data/logs")


@pytest.mark.parametrize("name", [*COMPOSE_FILES, "deploy/docker-compose.host.yml"])
def test_every_volume_of_compose_is_declared_or_in_the_repository(name: str) -> None:
    document = read_yaml(ROOT / name)
    for service in document["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in document["volumes"]


def test_gpus_are_asked_for_in_a_file_of_their_own() -> None:
    reserved = read_yaml(DEPLOY / "docker-compose.gpu.yml")["services"]["gateway"]["deploy"]["resources"][
        "reservations"
    ]
    assert reserved["devices"] == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert "nvidia" not in (ROOT / "docker-compose.yml").read_text()


# The commands: a Docker that only says what it was told -------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The Makefile, and a `docker` that writes down how it was called."""
    shutil.copy2(ROOT / "Makefile", tmp_path)
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\ncase $* in (*port*) echo {PUBLISHED};; (*) echo "docker $*";; esac\n')
    docker.chmod(0o755)
    return tmp_path


def make(desk: Path, *words: str, say: str = "") -> subprocess.CompletedProcess[str]:
    environment = strangers_environment(PATH=f"{desk / 'bin'}:/usr/bin:/bin")
    return subprocess.run(
        ["make", *words], cwd=desk, env=environment, input=say, capture_output=True, text=True, timeout=20
    )


PUBLISHED = "127.0.0.1:9000"
BOTH = "docker compose -f docker-compose.yml -f docker-compose.monitoring.yml"


def test_make_up_starts_all_of_it_and_makes_a_first_key(desk: Path) -> None:
    """And says how to ask where Compose has published it, which only Compose knows."""
    assert make(desk, "up").stdout.splitlines() == [
        f"{BOTH} up --detach --build",
        f"{BOTH} exec -T gateway python3 scripts/keys.py ensure --at {PUBLISHED}",
    ]
    assert f"{BOTH} -f deploy/docker-compose.gpu.yml up" in make(desk, "up", "GPU=1").stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [("down", "down"), ("restart", "restart gateway"), ("logs", "logs --follow")],
)
def test_other_commands_tell_compose(desk: Path, command: str, said: str) -> None:
    assert make(desk, command).stdout == f"{BOTH} {said}\n"


@pytest.mark.parametrize("command", ["up", "down", "restart", "nuke"])
def test_without_compose_it_is_told_what_is_missing(desk: Path, command: str) -> None:
    """A Docker without it says of `docker compose -f` that it does not know the shorthand f."""
    docker = desk / "bin" / "docker"
    docker.write_text("#!/bin/sh\necho \"unknown shorthand flag: 'f' in -f\" >&2\nexit 125\n")
    refused = make(desk, command, say="y\n")
    assert refused.returncode != 0
    assert refused.stderr.startswith("make: this needs Docker, with Compose 2.24")
    assert "shorthand" not in refused.stderr


def test_nothing_is_deleted_unless_it_is_meant(desk: Path) -> None:
    deleted = f"{BOTH} down --volumes --remove-orphans\n"
    for doubt in ("", "n\n", "\n"):
        refused = make(desk, "nuke", say=doubt)
        assert refused.returncode != 0
        assert refused.stdout == "nothing is deleted\n"
    assert make(desk, "nuke", say="y\n").stdout == deleted
    assert make(desk, "nuke", "FORCE=1").stdout == deleted


# What watches it ----------------------------------------------------------------------------------


def metrics_named(expression: str) -> set[str]:
    """The metrics of ours that an expression reads, without what a histogram's name has behind it."""
    declared = {each.name for each in Metrics("0", 0)._instruments}
    named = set(re.findall(r"\brouter_\w+", expression))
    found = {name if name in declared else re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
    assert found <= declared, f"/metrics has no {found - declared}"
    return found


def test_the_dashboard_shows_metrics_that_are_there() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "corral.json").read_text())
    assert dashboard["uid"] == "corral"
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    assert all(map(metrics_named, expressions))


def test_alerts_go_off_by_metrics_states_and_errors_that_are_there() -> None:
    [group] = read_yaml(DEPLOY / "prometheus" / "alerts.yml")["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    assert {name: metrics_named(expression) for name, expression in rules.items()} == {
        "CorralDown": set(),
        "CorralModelFailed": {"router_model_state"},
        "CorralRefuses": {"router_rejections_total"},
        "CorralWaitsLong": {"router_queue_oldest_wait_seconds"},
        "CorralMemoryMisjudged": {"router_vram_estimate_error_ratio"},
    }
    [state] = re.findall(r'state="(\w+)"', rules["CorralModelFailed"])
    assert state == ModelState.FAILED.value
    [reasons] = re.findall(r'reason=~"([\w|]+)"', rules["CorralRefuses"])
    codes = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    assert set(reasons.split("|")) <= codes
    [job] = re.findall(r'job="(\w+)"', rules["CorralDown"])
    for configuration in ("prometheus.yml", "prometheus-host.yml"):
        read = read_yaml(DEPLOY / "prometheus" / configuration)
        assert read["rule_files"] == ["alerts.yml"]
        assert [each["job_name"] for each in read["scrape_configs"]] == [job]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "corral.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    [provider] = read_yaml(provisioning / "dashboards" / "corral.yml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]


def target(configuration: Path) -> tuple[str, str]:
    """Whom Prometheus asks: one, since a gateway that is asked under two names is counted twice."""
    [job] = read_yaml(configuration)["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    [group] = job["static_configs"]
    [only] = group["targets"]
    host, _, port = only.partition(":")
    return host, port


def mounted_at(service: dict[str, Any], inside: str) -> Path:
    """The file of the repository that a container has there."""
    sources: dict[str, str] = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
    return ROOT / sources[inside]


def test_prometheus_asks_the_gateway_once() -> None:
    found = services()
    host, port = target(mounted_at(found["prometheus"], "/etc/prometheus/prometheus.yml"))
    assert port in [each.rpartition(":")[2] for each in found[host]["ports"]]


def test_what_watches_it_has_its_rules_and_is_for_this_machine_alone() -> None:
    found = services()
    rules = mounted_at(found["prometheus"], "/etc/prometheus/alerts.yml")
    assert rules == DEPLOY / "prometheus" / "alerts.yml"
    for name in ("prometheus", "grafana"):
        [port] = found[name]["ports"]
        assert port.startswith("${MONITORING_HOST:-127.0.0.1}:")


def test_beside_a_gateway_in_no_container_prometheus_asks_the_machine_once() -> None:
    overlay = read_yaml(DEPLOY / "docker-compose.host.yml")["services"]["prometheus"]
    host, port = target(mounted_at(overlay, "/etc/prometheus/prometheus.yml"))
    assert overlay["extra_hosts"] == [f"{host}:host-gateway"]
    assert port == "8000"


# Kubernetes ---------------------------------------------------------------------------------------


def variables(container: dict[str, Any]) -> dict[str, Any]:
    """What a container's manifest sets, None where it comes from a secret."""
    return {each["name"]: each.get("value") for each in container["env"]}


def manifests() -> dict[str, Any]:
    found = [read_yaml(path) for path in KUBERNETES.glob("*.yaml")]
    return {each["kind"]: each for each in found}


def of_kubernetes_own_kinds() -> list[Path]:
    """Those of the operators have schemas elsewhere; what counts in them is tested below."""
    return [path for path in sorted(KUBERNETES.glob("*.yaml")) if read_yaml(path)["kind"] not in OF_OPERATORS]


@pytest.mark.parametrize("path", of_kubernetes_own_kinds(), ids=lambda path: path.name)
def test_kubernetes_own_kinds_fit_its_schemas(path: Path) -> None:
    validator = Path(sys.executable).with_name("kubernetes-validate")
    ran = subprocess.run([validator, "--strict", "--no-warn", str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_parts_of_kubernetes_are_all_applied_and_find_one_another() -> None:
    kinds = manifests()
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "loader.yaml"}
    assert set(kinds["Kustomization"]["resources"]) == files
    pod = kinds["StatefulSet"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert kinds["Service"]["spec"]["selector"] == labels
    for kind in ("StatefulSet", "PodDisruptionBudget", "ServiceMonitor"):
        assert kinds[kind]["spec"]["selector"]["matchLabels"] == labels
    [port] = kinds["Service"]["spec"]["ports"]
    assert kinds["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == port["name"]
    assert kinds["StatefulSet"]["spec"]["serviceName"] == kinds["Service"]["metadata"]["name"]
    scaled = kinds["ScaledObject"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("StatefulSet", kinds["StatefulSet"]["metadata"]["name"])


def test_the_number_of_pods_follows_their_own_queues_and_nobody_elses() -> None:
    kinds = manifests()
    assert "replicas" not in kinds["StatefulSet"]["spec"], "it would be set back whenever this is applied"
    spec = kinds["ScaledObject"]["spec"]
    assert "cooldownPeriod" not in spec, "which counts only where there may be no pod at all"
    scale_down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert scale_down["stabilizationWindowSeconds"] == 600
    [trigger] = spec["triggers"]
    service = kinds["Service"]["metadata"]["name"]
    query = f'sum(router_queue_depth{{namespace="default",service="{service}"}})'
    assert trigger["metadata"]["query"] == query


def gateways_pod() -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of the StatefulSet, and its one container."""
    pod = manifests()["StatefulSet"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    return pod, container


def test_a_pod_has_the_variables_and_the_volumes_that_it_uses_and_time_to_drain() -> None:
    pod, container = gateways_pod()
    assert variables(container).keys() <= VARIABLES | OF_CUDA
    assert pod["enableServiceLinks"] is False, "a Service called `gateway` would set GATEWAY_PORT"
    command, pause_s = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= float(pause_s) + 30 + 10
    claims = {each["metadata"]["name"] for each in manifests()["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claims | {
        each["name"] for each in pod["volumes"]
    }


def test_what_a_pod_learns_is_found_by_the_pod_that_takes_its_place() -> None:
    """It is kept below DATA_DIR by INSTANCE_ID, which is the pod's name and with it its claim's."""
    _pod, container = gateways_pod()
    environment = variables(container)
    assert "INSTANCE_ID" not in environment
    [data] = manifests()["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert {"name": data["metadata"]["name"], "mountPath": environment["DATA_DIR"]} in container[
        "volumeMounts"
    ]


def test_models_get_to_where_the_gateway_reads_them() -> None:
    pod, container = gateways_pod()
    loader = manifests()["Pod"]["spec"]
    [source] = loader["volumes"]
    assert source in pod["volumes"]
    assert (
        source["persistentVolumeClaim"]["claimName"]
        == manifests()["PersistentVolumeClaim"]["metadata"]["name"]
    )
    assert [mount.get("readOnly") for mount in loader["containers"][0]["volumeMounts"]] == [None]
    environment = variables(container)
    models = {"name": source["name"], "mountPath": environment["BASE_MODELS_PATH"], "readOnly": True}
    assert models in container["volumeMounts"]


def test_nothing_else_is_written_where_a_pods_status_file_is() -> None:
    """A place that is full would take the pod out of service: its status would grow old."""
    pod, container = gateways_pod()
    environment = variables(container)
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    # A folder in it, made by the gateway: in what everybody may write to no engine gets a socket.
    runtime = mounted[str(PurePath(environment["RUNTIME_DIR"]).parent)]
    assert list(mounted.values()).count(runtime) == 1
    [volume] = [each for each in pod["volumes"] if each["name"] == runtime]
    # Writing a file anew takes room for two.
    assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 2**20 >= 2 * DOCUMENT_BYTES_MAX
    assert PurePath(environment["CUDA_CACHE_PATH"]).parent == PurePath(environment["DATA_DIR"])


def test_the_gateway_says_whether_it_lives_and_the_health_port_whether_it_is_ready() -> None:
    _pod, container = gateways_pod()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "health": 8001}
    asked = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {
        "startupProbe": {"path": "/live", "port": "http"},
        "livenessProbe": {"path": "/live", "port": "http"},
        "readinessProbe": {"path": "/ready", "port": "health"},
    }
    assert container["livenessProbe"]["timeoutSeconds"] == 5
    # A pod that is restarted by mistake loses its models; one that hangs is sent nobody meanwhile.
    assert container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"] == 60


def test_a_gateway_that_hangs_is_not_alive_to_kubernetes_though_its_health_port_answers(
    start_corral: StartCorral,
) -> None:
    corral = start_corral()
    asked = gateways_pod()[1]["livenessProbe"]["httpGet"]
    probed = {"http": corral.url, "health": corral.health_url}[asked["port"]]
    assert ask(probed + asked["path"]).status == 200
    corral.tell(signal.SIGSTOP)
    try:
        assert ask(corral.health_url + asked["path"]).status == 200
        address = urlsplit(probed)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=0.5)
        connection.request("GET", asked["path"])
        with pytest.raises(TimeoutError):
            connection.getresponse()
        connection.close()
    finally:
        corral.tell(signal.SIGCONT)


# Recipes ------------------------------------------------------------------------------------------


def test_fly_and_cloud_run_set_variables_that_there_are_and_leave_time_to_drain() -> None:
    fly = tomllib.loads((DEPLOY / "platforms" / "fly.toml").read_text())
    assert fly["env"].keys() <= VARIABLES
    assert fly["kill_signal"] == "SIGINT"
    assert float(fly["env"]["DRAIN_TIMEOUT_S"]) < float(fly["kill_timeout"].removesuffix("s"))
    service = read_yaml(DEPLOY / "platforms" / "cloud-run.yaml")
    [container] = service["spec"]["template"]["spec"]["containers"]
    environment = variables(container)
    assert environment.keys() <= VARIABLES
    assert float(environment["DRAIN_TIMEOUT_S"]) < 10
    assert container["livenessProbe"] == {"httpGet": {"path": "/live"}, "timeoutSeconds": 5}


def test_what_a_recipe_asks_a_platform_for() -> None:
    fly = tomllib.loads((DEPLOY / "platforms" / "fly.toml").read_text())
    [machine] = fly["vm"]
    assert machine.keys() == {"size", "memory"}
    pod = read_yaml(DEPLOY / "platforms" / "cloud-run.yaml")["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    # Without it a GPU is asked for in two zones.
    assert pod["metadata"]["annotations"]["run.googleapis.com/gpu-zonal-redundancy-disabled"] == "true"


def test_whoever_makes_a_key_gets_to_see_it() -> None:
    recipes = [name for name in repository_files() if name.startswith("deploy/") or name.endswith(".md")]
    lines = [line for name in recipes for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    made = [line.lstrip("# ") for line in lines if "$(openssl rand" in line]
    assert set(made) == {'key=sk-$(openssl rand -hex 32); echo "$key"'}


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("platforms/fly.toml", 'fly secrets set API_KEY="$key"'),
        ("platforms/cloud-run.yaml", "gcloud secrets create corral-api-key"),
        ("platforms/runpod.env", "#API_KEY="),
        (
            "kubernetes/kustomization.yaml",
            'kubectl create secret generic corral --from-literal=api-key="$key"',
        ),
    ],
)
def test_a_recipe_says_where_the_key_goes(recipe: str, command: str) -> None:
    assert command in (DEPLOY / recipe).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("BASE_MODELS_PATH", "/repository"), ("MODEL_PATH", "/repository/FILE.gguf")],
)
def test_hugging_faces_files_are_found_as_they_lie(
    start_corral: StartCorral, tmp_path: Path, demo_files: Path, variable: str, value: str
) -> None:
    """A repository is mounted whole: its files are at the top, there is no folder `models`, and a config.json
    is about the model."""
    assert f"`{variable}={value}`" in platform_row("Hugging Face endpoints")
    assert "`DATA_DIR=/data`" in platform_row("Hugging Face endpoints")
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy2(demo_files / "demo.gguf", repository / "FILE.gguf")
    (repository / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    own = {variable: value.replace("/repository", str(repository)), "PORT_BACKEND": str(free_port())}
    corral = start_corral(program=ROOT / "entrypoint.sh", environment=own)
    assert [model["id"] for model in corral.ask("/v1/models").json()["data"]] == ["FILE"]
    assert content(corral.ask(CHAT, chat("FILE")))
    assert "architectures" not in corral.log_text


def test_runpods_variables_are_ours() -> None:
    lines = (DEPLOY / "platforms" / "runpod.env").read_text()
    assert set(re.findall(r"^#?([A-Z_]+)=", lines, re.MULTILINE)) <= VARIABLES


def test_the_unit_for_systemd_starts_the_entrypoint_and_waits_for_the_drain() -> None:
    unit = (DEPLOY / "systemd" / "corral.service").read_text()
    assert "ExecStart=/opt/corral/entrypoint.sh\n" in unit
    environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))
    assert environment.keys() <= VARIABLES | OF_CUDA
    assert PurePath(environment["CUDA_CACHE_PATH"]).parent == PurePath(environment["DATA_DIR"])
    timeout = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert timeout is not None
    assert int(timeout[1]) > 30


def test_every_file_below_deploy_is_named_on_the_page_about_it() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    files = [name for name in repository_files() if name.startswith("deploy/")]
    folders = {"deploy/kubernetes/", "deploy/grafana/", "deploy/prometheus/"}
    missing = [name for name in files if name not in page and not any(map(name.startswith, folders))]
    assert missing == []
    assert [folder for folder in folders if folder not in page] == []
