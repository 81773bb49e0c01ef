"""Containers with a label follow one image, but those that were started a moment ago are left alone.

Edit the three lines below, then `follows` and `decide`. Nothing here knows WebAssembly: `component.py` asks the host, calls
these functions and answers. `wit/policy.wit` says what a container can be asked.
"""

NAME, VERSION = "{{name}}", "0.1.0"

# What the containers follow.
IMAGE = "ghcr.io/acme/app:latest"
# Containers with this label follow it, whatever its value.
LABEL = "acme.follow"
# Seconds. Who started a container so recently is still at work in it.
SETTLED_AFTER = 30 * 60

SUMMARY = f"containers with the label `{LABEL}` follow `{IMAGE}`"
# The images to follow, by names of your own: `refit refresh --runtime app`.
TARGETS = {"app": IMAGE}


def follows(container, target):
    """Whether this container follows this target."""
    return LABEL in dict(container.labels)


def decide(container, image, is_current, request, now):
    """What becomes of a container that follows `image`: verdict, rule and reason."""
    asked, is_running = request.recreate, container.state.name == "RUNNING"
    if is_current:
        if request.force and asked and is_running:
            return "recreate", "forced", f"it already runs `{image}`, and the request asked to recreate it anyway"
        return "current", "up-to-date", f"it runs what `{image}` stands for now"
    if not is_running:
        return "stale", "not-running", f"it is behind `{image}`, but {STATES[container.state.name]}"
    if not asked:
        return "stale", "recreate-not-asked", f"it is behind `{image}`, and the request asked to recreate nothing"
    age = max(0, now - (container.started or 0))
    if age < SETTLED_AFTER and not request.force:
        return "stale", "just-started", f"it is behind `{image}`, but was started {age // 60} min ago"
    return "recreate", "image-moved", f"`{image}` stands for another image now"


STATES = {
    "CREATED": "was never started",
    "PAUSED": "is paused",
    "RESTARTING": "is between two starts",
    "REMOVING": "is being removed",
    "EXITED": "has exited",
    "DEAD": "is dead",
}
