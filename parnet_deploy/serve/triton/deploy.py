"""How a repository is started: a compose file, and an InferenceService for KServe.

References: https://github.com/compose-spec/compose-spec/blob/main/spec.md and
https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/triton
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from parnet_deploy.bundle import EngineManifest
from parnet_deploy.serve.triton.config import ModelConfig

COMPOSE = "compose.yaml"
INFERENCE_SERVICE = "inferenceservice.yaml"
MOUNT = "/models"

OPTIONS = ("--disable-auto-complete-config", "--exit-timeout-secs=30")
"""Triton's options beside the repository's place, whoever starts it.

A configuration is complete, so nothing is to be added to it. Models are not loaded or unloaded over
the network: that is Triton's default, and is not changed.
"""

_COMPOSE = """\
# Triton with this repository, for clients on this machine. TRITON_IMAGE names its image:
#   TRITON_IMAGE=tritonserver:YY.MM-py3 docker compose up
services:
  triton:
    image: "${{TRITON_IMAGE:?give the name of Triton's image in TRITON_IMAGE}}"
    command:
{command}
    ports:
      - "127.0.0.1:8000:8000"  # HTTP
      - "127.0.0.1:8001:8001"  # gRPC
      - "127.0.0.1:8002:8002"  # metrics
    volumes:
      - ".:{mount}:ro"
    read_only: true
    tmpfs: ["/tmp"]
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    stop_grace_period: 40s  # longer than --exit-timeout-secs: what is in flight is answered
    healthcheck:
      test:
        - CMD
        - python3
        - -c
        - "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready')"
      interval: 5s
      timeout: 3s
      start_period: 300s
    restart: unless-stopped
"""

_GPUS = """\
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              device_ids: [{ids}]
              capabilities: ["gpu"]
"""

_INFERENCE_SERVICE = """\
# Triton with this repository, in a cluster with KServe. storageUri is where it lies there.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    minReplicas: 1
    terminationGracePeriodSeconds: 40  # longer than --exit-timeout-secs
    model:
      modelFormat:
        name: triton
        version: "2"
      runtime: kserve-tritonserver
      protocolVersion: v2
      storageUri: "{storage}"
      args:
{args}
"""

_LIMITS = """\
      resources:
        limits:
          nvidia.com/gpu: "{count}"
"""


def gpu_count(models: Sequence[ModelConfig]) -> int:
    """How many GPUs there have to be: one more than the highest number of one."""
    groups = [model.instance_group for model in models if model.instance_group is not None]
    return max((number + 1 for group in groups for number in group.gpus), default=0)


def server_options(manifest: EngineManifest) -> tuple[str, ...]:
    """`OPTIONS`, and what an engine's plans need besides."""
    if manifest.backend == "tensorrt" and manifest.target.get("version_compatible"):
        return (*OPTIONS, "--backend-config=tensorrt,version-compatible=true")
    return OPTIONS


def compose_text(models: Sequence[ModelConfig], manifest: EngineManifest) -> str:
    """A compose file that mounts the folder it lies in."""
    command = ["tritonserver", f"--model-repository={MOUNT}", *server_options(manifest)]
    text = _COMPOSE.format(command=_listed(command, 6), mount=MOUNT)
    if count := gpu_count(models):
        text += _GPUS.format(ids=", ".join(f'"{number}"' for number in range(count)))
    return text


def inference_service_text(
    models: Sequence[ModelConfig], manifest: EngineManifest, storage: str
) -> str:
    """A KServe InferenceService of the repository, which lies at `storage`."""
    text = _INFERENCE_SERVICE.format(
        name=_dns_label(models[-1].name),
        storage=storage,
        args=_listed(server_options(manifest), 8),
    )
    if count := gpu_count(models):
        text += _LIMITS.format(count=count)
    return text


def _listed(values: Sequence[str], indent: int) -> str:
    return "\n".join(f'{" " * indent}- "{value}"' for value in values)


def _dns_label(name: str) -> str:
    """A name as Kubernetes takes it: small letters, digits and '-', at most 63."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-")
    return label if label[:1].isalpha() else f"m-{label}"[:63].strip("-")
