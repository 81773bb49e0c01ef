"""A Refit policy in Python: `ws-*` containers follow their image, one first and then the rest.

The contract is `wit/policy.wit`; `componentize-py` makes the modules below `wit_world` from it. A policy has no files, no
network and no clock of its own: what it knows, it is told through `docker` and `host`.
"""

import json

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.exports.policy import (
    ConfigProblem,
    Decision,
    Description,
    Failure_InvalidConfig,
    Failure_UnknownTargets,
    Failure_Unlisted,
    Report,
    Target,
    UnknownTargets,
    Unlisted,
    Verdict,
)
from wit_world.imports import docker
from wit_world.imports.types import ContainerState, EngineError_NotFound, Strategy

PREFIX = "ws-"
DEFAULTS = {
    "images": "ghcr.io/molecule-ai/workspace-template-{runtime}:latest",
    "runtimes": [
        "claude-code", "langgraph", "crewai", "autogen", "deepagents", "hermes", "gemini-cli", "openclaw",
    ],
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "images": {"type": "string", "default": DEFAULTS["images"]},
        "runtimes": {
            "type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True, "default": DEFAULTS["runtimes"],
        },
    },
}


class Policy(exports.Policy):
    """componentize-py looks for a class of this name."""

    def describe(self):
        summary = "running workspaces follow the image of their runtime, one first and then the rest"
        return Description("canary-python", "0.1.0", summary, json.dumps(SCHEMA))

    def validate_config(self, config):
        if found := problems(config):
            raise Err(found)

    def refresh(self, request, config):
        if found := problems(config):
            raise Err(Failure_InvalidConfig(found))
        targets = selected(settings(config), request)
        if not targets:
            return Report([], [])
        images = docker.pull([target.image for target in targets])
        try:
            listed = [c for c in docker.containers() if c.name().startswith(PREFIX)]
        except Err as error:
            raise Err(Failure_Unlisted(Unlisted(error.value, targets)))
        decisions, due = [], []
        for container, answer in zip(listed, docker.inspect(listed)):
            decision, image = decide(container, answer, targets, images, request)
            if decision:
                decisions.append(decision)
            if image:
                due.append((decision, docker.Recreation(container, image, Strategy.REPLACE)))
        recreate(due)
        return Report(targets, decisions)


def recreate(due):
    """One first. Where it does not come up, the rest stays on the image that is known to work."""
    if not due:
        return
    (_, canary), rest = due[0], due[1:]
    [outcome] = docker.recreate([canary])
    if isinstance(outcome, Ok):
        docker.recreate([recreation for _, recreation in rest])
        return
    name = due[0][0].container
    for decision, _ in rest:
        decision.verdict, decision.rule = Verdict.STALE, "canary-failed"
        decision.reason = f"`{name}` was to be recreated first, and was not"


def decide(container, answer, targets, images, request):
    """What becomes of a container, and the image that it gets where it is to be recreated."""
    name = container.name()

    def because(verdict, rule, reason, image=None):
        return Decision(name, verdict, rule, reason), image

    if isinstance(answer, Err):
        if isinstance(answer.value, EngineError_NotFound):
            return None, None
        return because(Verdict.UNKNOWN, "inspect-failed", "it could not be inspected")
    info = answer.value
    at = next((n for n, target in enumerate(targets) if repository(info.image) == repository(target.image)), None)
    if at is None:
        return None, None
    tag, pulled = targets[at].image, images[at]
    if isinstance(pulled, Err):
        return because(Verdict.UNKNOWN, "pull-failed", f"`{tag}` could not be pulled, so nobody knows whether it is behind")
    running, image = info.state == ContainerState.RUNNING, pulled.value
    if info.image_id == image.id():
        if request.force and request.recreate and running:
            return because(Verdict.RECREATE, "forced", f"it already runs `{tag}`, and the request asked to recreate it anyway", image)
        return because(Verdict.CURRENT, "up-to-date", f"it runs what `{tag}` stands for now")
    if not running:
        return because(Verdict.STALE, "not-running", f"it is behind `{tag}`, but it does not run")
    if not request.recreate:
        return because(Verdict.STALE, "recreate-not-asked", f"it is behind `{tag}`, and the request asked to change no container")
    return because(Verdict.RECREATE, "image-moved", f"`{tag}` stands for another image now", image)


def selected(config, request):
    """The targets that the request means, in the order of the configuration."""
    unknown = [name for name in request.targets if name not in config["runtimes"]]
    if unknown:
        raise Err(Failure_UnknownTargets(UnknownTargets(unknown, config["runtimes"])))
    targets = [Target(runtime, config["images"].replace("{runtime}", runtime)) for runtime in config["runtimes"]]
    repositories = {repository(image) for image in request.images}
    return [
        target
        for target in targets
        if (not request.targets or target.name in request.targets)
        and (not repositories or repository(target.image) in repositories)
    ]


def repository(image):
    """`ghcr.io/acme/app` of `ghcr.io/acme/app:v1@sha256:…`. A colon before the last slash belongs to a port."""
    name = image.split("@")[0]
    head, _, last = name.rpartition("/")
    return f"{head}/{last.split(':')[0]}"


def settings(text):
    return DEFAULTS | json.loads(text or "{}")


def problems(text):
    """All that is wrong with a configuration, and where."""
    try:
        config = settings(text)
    except (ValueError, TypeError):
        return [ConfigProblem("", "must be a JSON object")]
    found = [ConfigProblem(key, "is no key of this policy") for key in config if key not in DEFAULTS]
    images, runtimes = config["images"], config["runtimes"]
    if not isinstance(images, str) or repository(images).count("{runtime}") != 1:
        found.append(ConfigProblem("images", "must hold `{runtime}` once, before the tag"))
    if not isinstance(runtimes, list) or not runtimes or not all(isinstance(name, str) for name in runtimes):
        found.append(ConfigProblem("runtimes", "must be a list of at least one name"))
    elif len(set(runtimes)) < len(runtimes):
        found.append(ConfigProblem("runtimes", "must name each runtime once"))
    return found
