"""The component: asks the host through `docker`, lets `policy.py` decide, and answers. Seldom needs a change.

`componentize-py` makes the modules below `wit_world` from `wit/policy.wit`.
"""

import json

import policy
from componentize_py_types import Err
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
from wit_world.imports import docker, host, types
from wit_world.imports.host import Level
from wit_world.imports.types import Strategy


class Policy(exports.Policy):
    """componentize-py looks for a class of this name."""

    def describe(self):
        return Description(policy.NAME, policy.VERSION, policy.SUMMARY, "")

    def validate_config(self, config):
        if found := problems(config):
            raise Err(found)

    def refresh(self, request, config):
        if found := problems(config):
            raise Err(Failure_InvalidConfig(found))
        targets = selected(request)
        if not targets:
            return Report([], [])
        images = docker.pull([target.image for target in targets])
        containers = listed(request, targets)
        now, decisions, wave = host.now(), [], []
        for container, answer in zip(containers, docker.inspect(containers) if containers else []):
            decided = decide(container, answer, targets, images, request, now)
            if not decided:
                continue
            verdict, rule, reason, image = decided
            decisions.append(Decision(container.name(), Verdict[verdict.upper()], rule, reason))
            if verdict == "recreate":
                wave.append(docker.Recreation(container, image, Strategy.REPLACE))
        if wave:
            docker.recreate(wave)
        return Report(targets, decisions)


def decide(container, answer, targets, images, request, now):
    """What `policy.py` says, with the image; nothing where the container follows none."""
    if isinstance(answer, Err):
        if isinstance(answer.value, types.EngineError_NotFound):
            return None
        return "unknown", "inspect-failed", f"it could not be inspected: {engine_error(answer.value)}", None
    info = answer.value
    at = next((n for n, target in enumerate(targets) if policy.follows(info, target.name)), None)
    if at is None:
        return None
    tag, pulled = targets[at].image, images[at]
    if isinstance(pulled, Err):
        return "unknown", "pull-failed", pull_error(tag, pulled.value), None
    image = pulled.value
    return *policy.decide(info, tag, info.image_id == image.id(), request, now), image


def selected(request):
    """The targets that the request means."""
    unknown = [name for name in request.targets if name not in policy.TARGETS]
    if unknown:
        raise Err(Failure_UnknownTargets(UnknownTargets(unknown, list(policy.TARGETS))))
    repositories = {repository(image) for image in request.images}
    return [
        Target(name, image)
        for name, image in policy.TARGETS.items()
        if (not request.targets or name in request.targets)
        and (not repositories or repository(image) in repositories)
    ]


def listed(request, targets):
    """All containers that the policy is lent."""
    try:
        return docker.containers()
    except Err as error:
        if request.recreate:
            raise Err(Failure_Unlisted(Unlisted(error.value, targets)))
        # Only images were asked for, and those are here.
        host.log(Level.WARN, f"containers could not be listed: {engine_error(error.value)}")
        return []


def pull_error(image, error):
    """Why this image is not here, for a person."""
    match error:
        case types.PullError_Denied(why):
            return f"`{image}` may not be pulled: {why}"
        case types.PullError_InvalidReference(why):
            return f"`{image}` is no image reference: {why}"
        case types.PullError_NotFound():
            return f"the registry has no `{image}`, as far as it tells"
        case types.PullError_Unauthorized(refusal) if refusal.credentials_sent:
            return f"the registry refused the login it was given for `{image}`: {refusal.message}"
        case types.PullError_Unauthorized(refusal):
            return f"the registry wants a login for `{image}`, and the host has none: {refusal.message}"
        case types.PullError_RateLimited(seconds):
            wait = "" if seconds is None else f", and asks to wait {seconds} s"
            return f"the registry limits the rate for `{image}`{wait}"
        case types.PullError_NoSpace(why):
            return f"this machine has no room for `{image}`: {why}"
        case types.PullError_Unavailable(why):
            return f"`{image}` could not be reached: {why}"
        case types.PullError_QuotaExceeded(why):
            return f"`{image}` was one pull too many: {why}"
        case types.PullError_Cancelled():
            return f"the refresh ended before `{image}` was pulled"
        case types.PullError_Other(why):
            return f"`{image}` could not be pulled: {why}"


def engine_error(error):
    """Why a question about containers was not answered, for a person."""
    match error:
        case types.EngineError_Denied(why) | types.EngineError_Other(why):
            return why
        case types.EngineError_NotFound():
            return "it is gone"
        case types.EngineError_Unavailable(why):
            return f"the engine did not answer: {why}"
        case types.EngineError_QuotaExceeded(why):
            return f"one question too many: {why}"
        case types.EngineError_Cancelled():
            return "the refresh is being ended"


def repository(image):
    """`ghcr.io/acme/app` of `ghcr.io/acme/app:v1@sha256:…`. A colon before the last slash belongs to a port."""
    head, _, last = image.split("@")[0].rpartition("/")
    return f"{head}/{last.split(':')[0]}"


def problems(config):
    """All that is wrong with a configuration, and where. This policy takes none."""
    try:
        given = json.loads(config or "{}")
    except ValueError as error:
        return [ConfigProblem("", f"this is no JSON: {error}")]
    if not isinstance(given, dict):
        return [ConfigProblem("", "must be keys and values")]
    return [ConfigProblem(key, "is no key of this policy") for key in given]
