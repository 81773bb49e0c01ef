//! Which containers are left alone whatever a policy asks, and why.
//!
//! [`objection`] asks three questions, in this order: does Refit itself depend on the container ([`super::self_protection`]), does
//! something else create and delete it (`owner`), and is it in a state to be recreated.

use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, State};

use super::self_protection::SelfProtection;

/// Why this container must not be recreated, as a sentence fragment; `None` where it may be.
pub async fn objection(
    engine: &dyn Engine,
    container: &Container,
    protection: &SelfProtection,
) -> Result<Option<String>, EngineError> {
    if let Some(reason) = protection.objection(engine, container).await? {
        return Ok(Some(reason));
    }
    Ok(unsupported_reason(container))
}

/// What the container itself says against it.
fn unsupported_reason(container: &Container) -> Option<String> {
    if let Some(reason) = owner(container) {
        return Some(reason);
    }
    if container.removes_itself() {
        return Some("it was started with `--rm`: the engine would delete it when it stops, and there would be no way back".into());
    }
    match container.state {
        State::Running => None,
        state => Some(not_running(state)),
    }
}

/// Why a container in this state is not recreated.
pub fn not_running(state: State) -> String {
    format!("it is {state}, and only running containers are recreated")
}

/// A label by which an owner marks the containers that it creates and deletes by itself, and the reason not to recreate them.
/// Docker Compose and Portainer are none: they leave a container alone until a person asks.
const OWNER_LABELS: &[(&str, &str)] = &[
    (
        "com.docker.swarm.task.id",
        "it is a task of a Swarm service: update the service instead, the swarm would replace whatever we made",
    ),
    (
        "io.kubernetes.pod.uid",
        "it belongs to a Kubernetes pod, and the kubelet would replace whatever we made: use `kubectl rollout restart` instead",
    ),
    (
        "com.hashicorp.nomad.alloc_id",
        "it belongs to a Nomad allocation, and Nomad would replace whatever we made: use `nomad job restart` or a new job version instead",
    ),
    (
        "com.amazonaws.ecs.task-arn",
        "it belongs to an Amazon ECS task, and the ECS agent would stop the task: force a new deployment of the service instead",
    ),
    (
        "io.balena.supervised",
        "the balena supervisor owns it and would replace whatever we made: push a new release instead",
    ),
    (
        "io.resin.supervised",
        "the balena supervisor owns it and would replace whatever we made: push a new release instead",
    ),
    (
        "supervisor_managed",
        "the Home Assistant Supervisor owns it and would replace whatever we made: update it in Home Assistant instead",
    ),
    (
        "net.azure-devices.edge.owner",
        "Azure IoT Edge owns it, and its agent would replace whatever we made: change the deployment manifest instead",
    ),
    (
        "io.rancher.container.uuid",
        "it belongs to a Rancher service, and Rancher would replace whatever we made: upgrade the service instead",
    ),
    (
        "com.gitlab.gitlab-runner.managed",
        "it is a job of GitLab Runner, which knows it by its id and deletes it when the job ends",
    ),
    (
        "org.testcontainers",
        "it belongs to a test run of Testcontainers, which knows it by its id and deletes it when the run ends",
    ),
];

/// Podman sets this on what a systemd unit has started, by Quadlet or `podman generate systemd`.
const LABEL_SYSTEMD_UNIT: &str = "PODMAN_SYSTEMD_UNIT";

/// The variables that Mesos sets in the containers of its tasks; it has no labels of its own.
const MESOS_VARIABLES: [&str; 2] = ["MESOS_CONTAINER_NAME", "MESOS_TASK_ID"];

/// Images of the container that only holds the namespaces of a pod.
const POD_IMAGES: [&str; 2] = ["podman-pause", "pause"];

/// The reason not to recreate a container that something else creates and deletes.
fn owner(container: &Container) -> Option<String> {
    if let Some(unit) = container.label(LABEL_SYSTEMD_UNIT) {
        let unit = quoted_unit(unit);
        return Some(format!(
            "its systemd unit `{unit}` owns it and deletes it when it stops: pull the image and run `systemctl restart {unit}` instead (`systemctl --user restart {unit}` for a rootless Podman)"
        ));
    }
    let mut owners = OWNER_LABELS.iter();
    if let Some((_, reason)) = owners.find(|(label, _)| container.label(label).is_some()) {
        return Some((*reason).to_owned());
    }
    let is_mesos_task = container.name.starts_with("mesos-")
        && container
            .environment()
            .any(|(name, _)| MESOS_VARIABLES.contains(&name));
    if is_mesos_task {
        return Some("it is a task of Mesos, whose agent would start another one: update it in the framework, for example in Marathon, instead".into());
    }
    holds_a_pod(container).then(|| {
        "it only holds the namespaces of a pod: recreate the pod instead, for example with `podman kube play --replace`".into()
    })
}

/// A label is a stranger's text, and the unit's name is shown as part of a command.
fn quoted_unit(unit: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@:._-\\".contains(c);
    unit.chars()
        .filter(|c| plain(*c))
        .take(UNIT_NAME_MAX)
        .collect()
}

/// systemd's own limit.
const UNIT_NAME_MAX: usize = 255;

fn holds_a_pod(container: &Container) -> bool {
    let image = container.image();
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let name = image.rsplit('/').next().unwrap_or_default();
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    container.name.ends_with("-infra") && (POD_IMAGES.contains(&name) || image.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::tests::container;
    use serde_json::json;

    fn reason(config: serde_json::Value) -> Option<String> {
        unsupported_reason(&container(config, json!({})))
    }

    #[test]
    fn systemd_unit_is_named() {
        let labels = json!({ "PODMAN_SYSTEMD_UNIT": "web@1.service" });
        let mut quadlet = container(json!({ "Labels": labels }), json!({ "AutoRemove": true }));
        let said = unsupported_reason(&quadlet).unwrap();
        assert!(said.contains("`systemctl restart web@1.service`"), "{said}");
        // Its unit may have stopped it already.
        quadlet.state = State::Exited;
        assert!(unsupported_reason(&quadlet).unwrap().contains("systemctl"));
        let labels = json!({ "PODMAN_SYSTEMD_UNIT": "a; rm -rf /`.service" });
        let said = reason(json!({ "Labels": labels })).unwrap();
        assert!(said.contains("`arm-rf.service`"), "{said}");
    }

    #[test]
    fn owned_containers_are_refused() {
        let mut reasons = Vec::new();
        for (label, _) in OWNER_LABELS {
            reasons.push(reason(json!({ "Labels": { *label: "" } })).unwrap());
        }
        let mut mesos = container(json!({ "Env": ["MESOS_TASK_ID=a"] }), json!({}));
        assert_eq!(unsupported_reason(&mesos), None);
        mesos.name = "mesos-6a2e".into();
        assert!(unsupported_reason(&mesos).unwrap().contains("Mesos"));
        for image in [
            "localhost/podman-pause:4.3.1-0",
            "registry.k8s.io/pause:3.9",
            "",
        ] {
            let mut infra = container(json!({ "Image": image }), json!({}));
            assert_eq!(unsupported_reason(&infra), None);
            infra.name = "0123456789ab-infra".into();
            assert!(unsupported_reason(&infra).unwrap().contains("pod"));
        }
    }

    #[test]
    fn containers_of_compose_and_portainer_are_supported() {
        for labels in [
            json!({ "com.docker.compose.project": "shop", "com.docker.compose.service": "web" }),
            json!({ "com.docker.compose.project": "shop", "io.portainer.accesscontrol.teams": "x" }),
            json!({ "io.kubernetes.docker.type": "" }),
        ] {
            assert_eq!(reason(json!({ "Labels": labels })), None, "{labels}");
        }
    }
}
