//! Which containers are left alone whatever a policy asks, and why.

use crate::container::{Container, State};

/// Set by Docker Swarm on the containers of its services.
const LABEL_SWARM_TASK: &str = "com.docker.swarm.task.id";

/// Why this container must not be recreated, as a sentence fragment; `None` where it may be.
pub fn objection(container: &Container, own_id: Option<&str>) -> Option<String> {
    if own_id == Some(container.id.as_str()) {
        return Some("it is Refit's own container, which cannot outlive its own stop".into());
    }
    if container.label(LABEL_SWARM_TASK).is_some() {
        return Some("it is a task of a Swarm service: update the service instead, the swarm would replace whatever we made".into());
    }
    if container.removes_itself() {
        return Some("it was started with `--rm`: the engine would delete it when it stops, and there would be no way back".into());
    }
    match container.state {
        State::Running => None,
        state => Some(format!(
            "it is {state}, and only running containers are recreated"
        )),
    }
}

/// The id of the container that we run in, where we do: the engine mounts files from a folder of that name into it.
pub fn own_container_id() -> Option<String> {
    find_container_id(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

fn find_container_id(mountinfo: &str) -> Option<String> {
    // Docker: `/var/lib/docker/containers/<id>/hostname /etc/hostname`; Podman: `/…/overlay-containers/<id>/userdata/hostname`.
    mountinfo
        .lines()
        .filter(|line| line.contains(" /etc/hostname "))
        .find_map(|line| {
            let mut ids = line
                .split("containers/")
                .filter_map(|rest| rest.split('/').next());
            ids.find(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .map(str::to_owned)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_find_the_container_that_we_run_in() {
        let id = "0123456789abcdef".repeat(4);
        let docker = format!(
            "612 596 254:0 /var/lib/docker/containers/{id}/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw\n"
        );
        assert_eq!(find_container_id(&docker).as_deref(), Some(id.as_str()));
        let podman = format!(
            "1 2 0:25 /containers/storage/overlay-containers/{id}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(find_container_id(&podman).as_deref(), Some(id.as_str()));
        assert_eq!(
            find_container_id("22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"),
            None
        );
    }
}
