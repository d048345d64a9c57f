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
ATTEMPTS, PAUSE_S = 60, 5.0


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
    try:
        code, answer = _request("POST", "", json=body)
    except NoAnswer as error:
        sys.exit(f"error: {shlex.quote(jobscript)} was not submitted: {error}")
    name = (answer.get("metadata") or {}).get("name")
    if code >= 400 or not name:
        sys.exit(f"error: Kubernetes refused {shlex.quote(jobscript)}: {_said(code, answer)}")
    print(name)


def status(name: str) -> None:
    """Print the Job's status. If the API server does not answer, the Job counts as running."""
    try:
        code, answer = _request("GET", f"/{name}")
    except NoAnswer as error:
        print(f"{error}; asking again", file=sys.stderr)
        print("running")
        return
    if code == 404:  # deleted by somebody
        print("failed")
    elif code >= 400:
        print(f"Kubernetes: {_said(code, answer)}; asking again", file=sys.stderr)
        print("running")
    else:
        now = answer.get("status") or {}
        print("success" if now.get("succeeded") else "failed" if now.get("failed") else "running")


def cancel(*names: str) -> None:
    """Delete Jobs with their pods. Those that could not be deleted are named, and the exit status is 1."""
    left = []
    for name in names:
        try:
            code, answer = _request("DELETE", f"/{name}", params={"propagationPolicy": "Background"})
            if code >= 400 and code != 404:
                left.append(f"{name}: {_said(code, answer)}")
        except NoAnswer as error:
            left.append(f"{name}: {error}")
    if left:
        sys.exit(f"error: not deleted: {'; '.join(left)}")


def clear() -> None:
    """Delete the Jobs that a driver left behind: a restarted driver would submit the same work a second time.

    Waits until Kubernetes says that their pods are gone, by which time trainings have saved.
    """
    chosen = {"labelSelector": ",".join("=".join(pair) for pair in _labels().items())}
    _persistently("DELETE", {**chosen, "propagationPolicy": "Foreground"})
    while left := _persistently("GET", chosen)["items"]:
        print(f"waiting for {len(left)} jobs of the driver before to end", flush=True)
        time.sleep(PAUSE_S)


def _persistently(method: str, params: dict) -> dict:
    """The answer for all Jobs of `params`, which are asked for again while there is none."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            code, answer = _request(method, "", params=params)
        except NoAnswer as error:
            print(f"{error}; asking again", file=sys.stderr, flush=True)
            continue
        if code >= 400:
            sys.exit(f"error: Kubernetes does not {method} Jobs: {_said(code, answer)}")
        if method != "GET" or isinstance(answer.get("items"), list):
            return answer
        print("Kubernetes answers without a list of Jobs; asking again", file=sys.stderr, flush=True)
    sys.exit(f"error: Kubernetes has not answered {ATTEMPTS} times; Jobs of the driver before may still run")


class NoAnswer(Exception):
    """The API server cannot be reached, is overloaded, or something else answers in its place."""


def _said(code: int, answer: dict) -> str:
    return " ".join(f"{code} {answer.get('message', '')}".split())


def _labels() -> dict[str, str]:
    return yaml.safe_load(TEMPLATE.read_text())["metadata"]["labels"]


def _request(method: str, path: str, **arguments) -> tuple[int, dict]:
    """HTTP status and body of the answer. Raises NoAnswer."""
    server = os.environ.get("KUBERNETES_API") or "https://kubernetes.default.svc"
    token, named = CREDENTIALS / "token", CREDENTIALS / "namespace"
    try:
        namespace = named.read_text() if named.is_file() else "default"
        response = requests.request(
            method,
            f"{server}/apis/batch/v1/namespaces/{namespace}/jobs{path}",
            headers={"Authorization": f"Bearer {token.read_text()}"} if token.is_file() else {},
            verify=str(CREDENTIALS / "ca.crt") if (CREDENTIALS / "ca.crt").is_file() else True,
            timeout=TIMEOUT_S,
            **arguments,
        )
        answer = response.json()
    except (requests.RequestException, OSError) as error:  # OSError: the service account's files
        what = "does not answer in JSON" if isinstance(error, requests.JSONDecodeError) else "does not answer"
        raise NoAnswer(f"Kubernetes at {server} {what} ({' '.join(str(error).split())})") from error
    if not isinstance(answer, dict) or response.status_code >= 500 or response.status_code == 429:
        said = _said(response.status_code, answer if isinstance(answer, dict) else {})
        raise NoAnswer(f"Kubernetes at {server} gives no answer: {said}")
    return response.status_code, answer


if __name__ == "__main__":
    commands = {"submit": submit, "status": status, "cancel": cancel, "clear": clear}
    if len(sys.argv) < 2 or sys.argv[1] not in commands or (len(sys.argv) == 2) != (sys.argv[1] == "clear"):
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
