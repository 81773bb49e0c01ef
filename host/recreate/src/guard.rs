//! Decides which containers Refit never recreates, whatever a policy requests, and why.
//!
//! [`unsupported_reason`] asks three questions, in this order: does Refit itself depend on the container
//! ([`super::self_protection`]), does another program create and delete it (`owner_reason`), and is its state suitable.

use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, State};

use super::self_protection::SelfProtection;

/// Returns why Refit must not recreate this container, as a sentence fragment; `None` if it may.
pub async fn unsupported_reason(
    engine: &dyn Engine,
    container: &Container,
    protection: &SelfProtection,
) -> Result<Option<String>, EngineError> {
    if let Some(reason) = protection.dependency_reason(engine, container).await? {
        return Ok(Some(reason));
    }
    Ok(container_reason(container))
}

/// Returns the reason that follows from the container itself.
fn container_reason(container: &Container) -> Option<String> {
    if let Some(reason) = owner_reason(container) {
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

/// Returns why Refit does not recreate a container in this state.
pub fn not_running(state: State) -> String {
    format!("it is {state}, and only running containers are recreated")
}

/// Labels with which other programs mark the containers that they create and delete, each with the reason not to recreate them.
/// Docker Compose and Portainer are not listed: they leave a container alone until a user acts.
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

/// Podman sets this label on containers that a systemd unit started, by Quadlet or `podman generate systemd`.
const LABEL_SYSTEMD_UNIT: &str = "PODMAN_SYSTEMD_UNIT";

/// The variables that Mesos sets in the containers of its tasks; it sets no labels.
const MESOS_VARIABLES: [&str; 2] = ["MESOS_CONTAINER_NAME", "MESOS_TASK_ID"];

/// Images of containers that only hold the namespaces of a pod.
const POD_IMAGES: [&str; 2] = ["podman-pause", "pause"];

/// Returns the reason not to recreate a container that another program creates and deletes.
fn owner_reason(container: &Container) -> Option<String> {
    if let Some(unit) = container.label(LABEL_SYSTEMD_UNIT) {
        let unit = sanitize_unit_name(unit);
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
    is_pod_infra(container).then(|| {
        "it only holds the namespaces of a pod: recreate the pod instead, for example with `podman kube play --replace`".into()
    })
}

/// Removes unusual characters: a label is untrusted text, and a report shows the unit's name as part of a command.
fn sanitize_unit_name(unit: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "@:._-\\".contains(c);
    unit.chars()
        .filter(|c| is_allowed(*c))
        .take(UNIT_NAME_MAX)
        .collect()
}

/// systemd's limit for unit names.
const UNIT_NAME_MAX: usize = 255;

fn is_pod_infra(container: &Container) -> bool {
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
        container_reason(&container(config, json!({})))
    }

    #[test]
    fn systemd_unit_is_named() {
        let labels = json!({ "PODMAN_SYSTEMD_UNIT": "web@1.service" });
        let mut quadlet = container(json!({ "Labels": labels }), json!({ "AutoRemove": true }));
        let reason_text = container_reason(&quadlet).unwrap();
        assert!(
            reason_text.contains("`systemctl restart web@1.service`"),
            "{reason_text}"
        );
        // The unit may have stopped it already.
        quadlet.state = State::Exited;
        assert!(container_reason(&quadlet).unwrap().contains("systemctl"));
        let labels = json!({ "PODMAN_SYSTEMD_UNIT": "a; rm -rf /`.service" });
        let reason_text = reason(json!({ "Labels": labels })).unwrap();
        assert!(reason_text.contains("`arm-rf.service`"), "{reason_text}");
    }

    #[test]
    fn owned_containers_are_refused() {
        let mut reasons = Vec::new();
        for (label, _) in OWNER_LABELS {
            reasons.push(reason(json!({ "Labels": { *label: "" } })).unwrap());
        }
        let mut mesos = container(json!({ "Env": ["MESOS_TASK_ID=a"] }), json!({}));
        assert_eq!(container_reason(&mesos), None);
        mesos.name = "mesos-6a2e".into();
        assert!(container_reason(&mesos).unwrap().contains("Mesos"));
        for image in [
            "localhost/podman-pause:4.3.1-0",
            "registry.k8s.io/pause:3.9",
            "",
        ] {
            let mut infra = container(json!({ "Image": image }), json!({}));
            assert_eq!(container_reason(&infra), None);
            infra.name = "0123456789ab-infra".into();
            assert!(container_reason(&infra).unwrap().contains("pod"));
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
