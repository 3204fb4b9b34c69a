"""Cluster files: Ray, AWS's own descriptions and KubeRay's rules accept them, and every shipped
configuration finds a node for each of its actors."""

import copy
import re
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml

from raypipe.cluster_files import NodeType, lacking, offers
from raypipe.config import load, parse
from raypipe.errors import UserError

ROOT = Path(__file__).parents[2]
LAUNCHED = ["cluster.yaml", "deploy/gcp.yaml"]  # by `ray up`
KUBERAY = "deploy/kuberay.yaml"
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# What a user of a cluster file sets (docs/cluster.md): Google Cloud has no L40S.
OVERRIDES = {"deploy/gcp.yaml": ["seeds.pool.accelerator_type=A100"]}
GIB = 2**30
# Of Google's documentation of machine types: vCPUs, memory in GB, GPUs and their type.
MACHINES = {
    "n2-standard-8": (8, 32, 0, None),
    "n2-standard-16": (16, 64, 0, None),
    "g2-standard-8": (8, 32, 1, "L4"),
    "a2-highgpu-1g": (12, 85, 1, "A100"),
    "a3-highgpu-8g": (208, 1872, 8, "H100"),
}


def read(file):
    return yaml.safe_load((ROOT / file).read_text())


def manifests():
    cluster, job = yaml.safe_load_all((ROOT / KUBERAY).read_text())
    return cluster, job


def prepared(file):
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(read(file))


def workers(file):
    """Name and description of the node types that work."""
    config = read(file)
    types = config["available_node_types"]
    return {name: kind for name, kind in types.items() if name != config["head_node_type"]}


def adapted(path, file):
    """A configuration with what a user of a cluster file sets."""
    config = load(str(path))
    if config.seeds is None or config.seeds.pool.accelerator_type is None:
        return config
    return load(str(path), OVERRIDES.get(file))


def build(*overrides):
    return parse({"workspace": "w", "embedder": {"kind": "dlib"}}, "c.yaml", list(overrides))


# What every configuration asks for is offered.


@pytest.mark.parametrize("file", [*LAUNCHED, KUBERAY])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_finds_its_nodes(path, file):
    assert lacking(adapted(path, file), offers(str(ROOT / file))) == []


def test_an_override_is_needed_where_it_is_named():
    gcp = offers(str(ROOT / "deploy/gcp.yaml"))
    (line,) = lacking(load(str(ROOT / "configs/hgf-10k.yaml")), gcp)
    assert line.startswith("seeds.pool: no node has 4 CPU, 1 GPU, L40S for one actor")


NODES = [
    NodeType("head", {"CPU": 0}),
    NodeType("cpu", {"CPU": 16, "memory": 32 * GIB}),
    NodeType("gpu", {"CPU": 8, "GPU": 1, "accelerator_type:L4": 1, "memory": 16 * GIB}),
]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("embed.pool={num_gpus: 1, accelerator_type: B200}", "embed.pool: .* 1 CPU, 1 GPU, B200 "),
        ("embed.pool={num_gpus: 2}", "embed.pool: .* 2 GPU "),
        ("clean.pool={num_cpus: 17}", "clean.pool: .* 17 CPU "),
        # 16 CPUs and a GPU are there, and not on one node.
        ("screen.pool={num_cpus: 9, num_gpus: 0.5}", "screen.pool: .* 9 CPU, 0.5 GPU "),
        (f"assemble.pool={{memory: {33 * GIB}}}", "assemble.pool: .* 1 CPU, 33 GiB memory "),
        ("seeds={number: 1, reference_pool: {num_cpus: 20}}", "seeds.reference_pool: .* 20 CPU "),
        ("train={accelerator_type: H100, use_gpu: true}", "train: .* 1 CPU, 1 GPU, H100 "),
        ("generator.cpus_per_worker=64", "generator: .* 64 CPU "),
    ],
)
def test_what_no_node_has_is_named(override, line):
    (said,) = lacking(build(override), NODES)
    assert re.match(line, said)
    assert said.endswith(
        "(head has nothing; cpu has 16 CPU, 32 GiB memory; gpu has 8 CPU, 1 GPU, L4, 16 GiB memory)"
    )


@pytest.mark.parametrize(
    "override",
    [
        "embed.pool={num_gpus: 1, num_cpus: 8, accelerator_type: L4}",
        f"clean.pool={{num_cpus: 16, memory: {32 * GIB}}}",
        "train={num_workers: 8, use_gpu: true, cpus_per_worker: 4}",
        "embed.pool={max: 100, num_cpus: 0}",
    ],
)
def test_what_some_node_has_is_not(override):
    assert lacking(build(override), NODES) == []


def test_every_field_of_a_job_that_is_there_is_named_once():
    asked = [
        "embed.pool.num_cpus=99",
        "seeds={number: 1, pool: {num_cpus: 99}}",
        "train.cpus_per_worker=99",
    ]
    said = lacking(build(*asked), NODES)
    assert [line.partition(":")[0] for line in said] == ["embed.pool", "seeds.pool", "train"]
    assert len(lacking(build(*asked, "seeds=null"), NODES)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("workspace: w", "describes no cluster; expected available_node_types"),
        ("- 1", "describes no cluster"),
        ("available_node_types: {a: {resources: {CPU: many}}}", "a.resources.CPU: 'many' is no am"),
        ("available_node_types: [a]", "node types are not written as"),
        ("kind: RayCluster", "node types are not written as"),
        (None, "no such file"),
    ],
)
def test_a_file_that_describes_no_cluster(tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"cluster.yaml: .*{message}") as caught:
        offers(str(path))
    assert "\n" not in str(caught.value)


def test_a_type_that_may_not_start_offers_nothing(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "head_node_type: a\n"
        "available_node_types:\n"
        "  a: {resources: {CPU: 2}, max_workers: 0}\n"
        "  b: {resources: {CPU: 4}, max_workers: 0}\n"
        "  c: {resources: {CPU: 8}}\n"
    )
    assert [node.name for node in offers(str(path))] == ["a", "c"]


# Ray accepts the files, and its autoscaler starts the node that is meant.


@pytest.mark.parametrize("file", LAUNCHED)
def test_ray_accepts_what_it_launches(file):
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(file))
    broken = prepared(file)
    broken["available_node_types"]["cpu"]["resource"] = {}
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        validate_config(broken)


@pytest.mark.parametrize("file", LAUNCHED)
@pytest.mark.parametrize(
    ("demand", "number", "kind"),
    [
        ({"CPU": 1}, 16, "cpu"),
        ({"CPU": 2, "GPU": 1}, 1, "L4"),
        ({"CPU": 2, "GPU": 1}, 1, "diffusion"),
        ({"CPU": 4, "GPU": 1}, 8, "H100"),
    ],
)
def test_the_autoscaler_starts_one_node_of_the_kind_that_is_meant(file, demand, number, kind):
    from ray._common.utils import resources_from_ray_options
    from ray.autoscaler._private import resource_demand_scheduler as scheduler
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary

    if kind == "diffusion":
        kind = {"cluster.yaml": "L40S", "deploy/gcp.yaml": "A100"}[file]
    options = {"num_cpus": demand["CPU"], "num_gpus": demand.get("GPU")}
    if kind != "cpu":
        options["accelerator_type"] = kind
    asked = resources_from_ray_options({k: v for k, v in options.items() if v})
    config = prepared(file)
    started, left = scheduler.get_nodes_for(
        config["available_node_types"],
        {},
        config["head_node_type"],
        config["max_workers"],
        [asked] * number,
        partial(
            scheduler._default_utilization_scorer,
            node_availability_summary=NodeAvailabilitySummary({}),
        ),
    )
    assert dict(started) == {"cpu" if kind == "cpu" else f"gpu_{kind.lower()}": 1}
    assert not left


@pytest.mark.parametrize("file", [*LAUNCHED, KUBERAY])
def test_the_head_takes_no_work_and_gpus_are_of_three_types(file):
    head, *rest = offers(str(ROOT / file))
    assert head.resources == {"CPU": 0}
    types = [name for node in rest for name in node.resources if name.startswith("accelerator")]
    assert len(set(types)) == 3 and "accelerator_type:L4" in types
    assert sum("GPU" not in node.resources for node in rest) == 1


def test_gpus_are_called_as_ray_calls_them():
    from ray.util.accelerators import accelerators

    known = {value for name, value in vars(accelerators).items() if name.startswith("NVIDIA")}
    for file in [*LAUNCHED, KUBERAY]:
        for node in offers(str(ROOT / file)):
            for name in node.resources:
                if name.startswith("accelerator_type:"):
                    assert name.removeprefix("accelerator_type:") in known


@pytest.mark.parametrize("file", LAUNCHED)
def test_workers_start_from_nothing_and_training_is_not_on_spot(file):
    def spot(node):
        return "InstanceMarketOptions" in node or "provisioningModel" in node.get("scheduling", {})

    assert all(kind["min_workers"] == 0 for kind in workers(file).values())
    on_spot = {name for name, kind in workers(file).items() if spot(kind["node_config"])}
    assert on_spot == set(workers(file)) - {"cpu", "gpu_h100"}


# Sizes: what a node type promises, its machine has.


@pytest.mark.parametrize("file", LAUNCHED)
def test_disks_have_room_for_spilling(file):
    for name, kind in workers(file).items():
        node = kind["node_config"]
        if file == "cluster.yaml":
            (disk,) = node["BlockDeviceMappings"]
            size = disk["Ebs"]["VolumeSize"]
        else:
            (disk,) = node["disks"]
            size = disk["initializeParams"]["diskSizeGb"]
        assert size >= 100 + 4 * kind["resources"]["object_store_memory"] / GIB, name


def test_machines_on_google_cloud_have_what_is_promised():
    for name, kind in workers("deploy/gcp.yaml").items():
        cpus, memory, gpus, accelerator = MACHINES[kind["node_config"]["machineType"]]
        has = kind["resources"]
        assert (has["CPU"], has.get("GPU", 0)) == (cpus, gpus), name
        assert not accelerator or has[f"accelerator_type:{accelerator}"] == 1
        assert has["memory"] + has["object_store_memory"] <= 0.92 * memory * GIB, name


@pytest.mark.slow
def test_instances_on_aws_have_what_is_promised_and_ray_can_set_them_up(tmp_path, monkeypatch):
    """Against moto's copy of what EC2 says of its instance types."""
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a key pair there
    (tmp_path / ".ssh").mkdir()
    config = prepared("cluster.yaml")
    plain = copy.deepcopy(config)
    for kind in plain["available_node_types"].values():
        kind["resources"] = {}
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    cloud = mock_aws()
    cloud.start(reset=False)  # by default it would empty the S3 server of the other tests as well
    try:
        detected = AWSNodeProvider.fillout_available_node_types_resources(plain)
        AWSNodeProvider.bootstrap_config(config)
    finally:
        cloud.stop(remove_data=False)
    for name, kind in workers("cluster.yaml").items():
        promised, found = kind["resources"], detected["available_node_types"][name]["resources"]
        total = found.pop("memory") / 0.7  # Ray's own share for actors
        assert {key: promised[key] for key in found} == found, name
        assert promised["memory"] + promised["object_store_memory"] <= 0.92 * total, name


def test_ec2_knows_every_parameter_of_an_instance():
    import botocore.session
    from botocore.validate import ParamValidator

    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for kind in read("cluster.yaml")["available_node_types"].values():
        asked = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(asked, shape)
        assert not report.has_errors(), report.generate_report()


# KubeRay: no schema of its resources is at hand; Ray derives its autoscaler's configuration.


def test_ray_reads_the_manifest_as_we_do():
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    cluster, _ = manifests()
    cluster["metadata"]["namespace"] = "default"
    derived = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    head, *rest = offers(str(ROOT / KUBERAY))
    assert derived["headgroup"]["resources"]["CPU"] == head.resources["CPU"]
    assert {node.name: node.resources for node in rest} == {
        name: kind["resources"] for name, kind in derived.items() if name != "headgroup"
    }
    assert all(kind["min_workers"] == 0 for kind in derived.values())


def test_pods_have_what_their_group_promises():
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    cluster, _ = manifests()
    promised = {node.name: node.resources for node in offers(str(ROOT / KUBERAY))}
    for group in cluster["spec"]["workerGroupSpecs"]:
        name, pod = group["groupName"], group["template"]["spec"]
        (container,) = pod["containers"]
        limits = {
            key: int(parse_quantity(v)) for key, v in container["resources"]["limits"].items()
        }
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert promised[name]["CPU"] == limits["cpu"]
        assert promised[name].get("GPU", 0) == limits.get("nvidia.com/gpu", 0)
        assert ("nodeSelector" in pod) == ("tolerations" in pod) == ("GPU" in promised[name])
        store = int(group["rayStartParams"]["object-store-memory"])
        assert promised[name]["memory"] + store <= 0.92 * limits["memory"], name
        (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": "/tmp/ray"}  # where Ray spills
        spill = int(parse_quantity(volume["emptyDir"]["sizeLimit"]))
        assert 4 * store <= spill < limits["ephemeral-storage"], name


def test_gpus_of_pods_are_those_that_their_group_names():
    cluster, _ = manifests()
    for group in cluster["spec"]["workerGroupSpecs"]:
        product = group["template"]["spec"].get("nodeSelector", {}).get("nvidia.com/gpu.product")
        for resource in group["resources"]:
            if resource.startswith("accelerator_type:"):
                assert product.split("-")[1] == resource.removeprefix("accelerator_type:")


def test_the_manifest_is_a_cluster_and_a_build_on_it():
    cluster, job = manifests()
    assert {cluster["apiVersion"], job["apiVersion"]} == {"ray.io/v1"}
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["spec"]["entrypoint"].startswith("raypipe build ")
    # Of KubeRay's API reference: a misspelt field would be dropped without a word.
    assert set(cluster["spec"]) == {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions"),
        *("headGroupSpec", "workerGroupSpecs"),
    }
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert set(group) == {
            *("groupName", "minReplicas", "maxReplicas", "resources", "rayStartParams", "template")
        }


# Versions: those of the lock file everywhere.


def test_images_and_packages_are_those_of_the_lock_file():
    lock = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if line
    )
    assert lock["ray"] == version("ray")
    image = f"rayproject/ray:{lock['ray']}-py311-"
    for file in [*LAUNCHED, "deploy/Dockerfile"]:
        text = (ROOT / file).read_text()
        found = re.findall(r"rayproject/ray\S*?(?=[\"\s}])", text)
        assert set(found) == {f"{image}cpu", f"{image}gpu"}, file
        for package in ("faiss", "onnxruntime"):
            pins = re.findall(rf"{package}-gpu(?:\[[a-z,]+\])?==([\d.]+)", text)
            cpu = "faiss-cpu" if package == "faiss" else package
            assert pins and set(pins) == {lock[cpu]}, file
    cluster, _ = manifests()
    assert cluster["spec"]["rayVersion"] == lock["ray"]


def test_every_worker_installs_the_project():
    for file in LAUNCHED:
        config = read(file)
        for kind in config["available_node_types"].values():
            commands = "\n".join(kind.get("worker_setup_commands", config["setup_commands"]))
            assert "requirements.lock" in commands and "--editable" in commands
        (project,) = (to for to, here in config["file_mounts"].items() if here == ".")
        assert all(project in line for line in config["setup_commands"])


def test_copied_into_the_image_is_what_is_installed():
    text = (ROOT / "deploy/Dockerfile").read_text()
    copied = [
        word for line in re.findall(r"^COPY \S+ (.*) \S+$", text, re.M) for word in line.split()
    ]
    assert {"raypipe", "actors", "jobs", "pyproject.toml", "requirements.lock"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
