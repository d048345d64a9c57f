"""Submit a Snakemake job to Kubernetes, print its status, delete it: the commands of the profile in this folder.

    python jobs.py submit JOBSCRIPT     prints the new Job's name
    python jobs.py status NAME          prints running, success or failed
    python jobs.py cancel NAME ...
    python jobs.py clear                deletes all Jobs that job.yaml labels and waits until they are gone

Runs in a pod and talks to the pod's cluster with its service account. KUBERNETES_API overrides the address.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

import requests
import yaml

CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TEMPLATE = Path(__file__).with_name("job.yaml")
TIMEOUT_S = 30


def manifest(jobscript: str, properties: dict) -> dict:
    """The Job for a job script with Snakemake's `properties`, made from job.yaml."""
    job = yaml.safe_load(TEMPLATE.read_text())
    resources = properties["resources"]
    name = properties.get("rule") or properties.get("groupid") or "group"
    parts = [name, *properties.get("wildcards", {}).values()]
    label = re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, parts)).lower()).strip("-")[:50]
    job["metadata"]["generateName"] = f"{label}-"
    job["spec"]["activeDeadlineSeconds"] = 60 * int(resources["runtime"])
    container = job["spec"]["template"]["spec"]["containers"][0]
    # tini forwards SIGTERM to all processes; a shell as the first process of a container would ignore it.
    container["command"] = ["tini", "-g", "--", "sh", jobscript]
    needs = {"cpu": str(properties.get("threads") or resources.get("_cores", 1)), "memory": f"{resources['mem_mb']}M"}
    limits = {"memory": needs["memory"]}
    if resources.get("gpu"):
        limits["nvidia.com/gpu"] = needs["nvidia.com/gpu"] = str(resources["gpu"])
    container["resources"] = {"requests": needs, "limits": limits}
    return job


def read_properties(jobscript: str) -> dict:
    """The line `# properties = {...}` that Snakemake writes into every job script."""
    for line in Path(jobscript).read_text().splitlines():
        if line.startswith("# properties = "):
            return json.loads(line.removeprefix("# properties = "))
    sys.exit(f"error: {jobscript}: no line '# properties = ...'; this is no job script of Snakemake's")


def submit(jobscript: str) -> None:
    """Create the Job and print its name."""
    body = manifest(str(Path(jobscript).resolve()), read_properties(jobscript))
    response = _request("POST", "", json=body)
    if not response.ok:
        sys.exit(f"error: Kubernetes refused {shlex.quote(jobscript)}: {response.status_code} {response.text}")
    print(response.json()["metadata"]["name"])


def status(name: str) -> None:
    """Print the Job's status. If the API server does not answer, the Job counts as running."""
    try:
        response = _request("GET", f"/{name}")
    except requests.RequestException as error:
        print(f"Kubernetes does not answer ({error}); asking again", file=sys.stderr)
        print("running")
        return
    if response.status_code == 404:  # deleted by somebody
        print("failed")
    elif not response.ok:
        print(f"Kubernetes: {response.status_code} {response.text}; asking again", file=sys.stderr)
        print("running")
    else:
        now = response.json().get("status", {})
        print("success" if now.get("succeeded") else "failed" if now.get("failed") else "running")


def cancel(*names: str) -> None:
    """Delete Jobs with their pods."""
    for name in names:
        _request("DELETE", f"/{name}", params={"propagationPolicy": "Background"})


def clear() -> None:
    """Delete the Jobs that a driver left behind: a restarted driver would submit the same work a second time.

    Waits until their pods are gone, by which time trainings have saved.
    """
    chosen = {"labelSelector": ",".join("=".join(pair) for pair in _labels().items())}
    response = _request("DELETE", "", params={**chosen, "propagationPolicy": "Foreground"})
    if not response.ok:
        sys.exit(f"error: Kubernetes deletes no Jobs: {response.status_code} {response.text}")
    while left := _request("GET", "", params=chosen).json().get("items", []):
        print(f"waiting for {len(left)} jobs of the driver before to end", flush=True)
        time.sleep(5)


def _labels() -> dict[str, str]:
    return yaml.safe_load(TEMPLATE.read_text())["metadata"]["labels"]


def _request(method: str, path: str, **arguments) -> requests.Response:
    server = os.environ.get("KUBERNETES_API") or "https://kubernetes.default.svc"
    token, namespace = CREDENTIALS / "token", CREDENTIALS / "namespace"
    return requests.request(
        method,
        f"{server}/apis/batch/v1/namespaces/{namespace.read_text() if namespace.is_file() else 'default'}/jobs{path}",
        headers={"Authorization": f"Bearer {token.read_text()}"} if token.is_file() else {},
        verify=str(CREDENTIALS / "ca.crt") if (CREDENTIALS / "ca.crt").is_file() else True,
        timeout=TIMEOUT_S,
        **arguments,
    )


if __name__ == "__main__":
    commands = {"submit": submit, "status": status, "cancel": cancel, "clear": clear}
    if len(sys.argv) < 2 or sys.argv[1] not in commands or (len(sys.argv) == 2) != (sys.argv[1] == "clear"):
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
