//! Ordinary requests, containers and ids, which a test changes where it needs to.

use crate::facts::{
    ContainerInfo, ContainerState, FailedStep, Health, RecreateError, Request, RestartPolicy,
    Trigger,
};

/// The request of an operator without flags: everything, containers included.
pub fn request() -> Request {
    Request {
        trigger: Trigger::Operator,
        targets: Vec::new(),
        images: Vec::new(),
        recreate: true,
        force: false,
    }
}

/// The error of a replacement that did not become healthy, for this cause.
pub fn rolled_back(cause: &str) -> RecreateError {
    RecreateError::RolledBack(FailedStep {
        step: "prove".to_owned(),
        cause: cause.to_owned(),
    })
}

/// An ordinary running container.
pub fn container_info(name: &str, image: &str) -> ContainerInfo {
    ContainerInfo {
        id: hex(name),
        name: name.to_owned(),
        image: image.to_owned(),
        image_id: image_id("unknown"),
        platform: None,
        state: ContainerState::Running,
        health: Health::None,
        created: 0,
        started: Some(0),
        labels: Vec::new(),
        environment: Vec::new(),
        networks: vec!["bridge".to_owned()],
        published_ports: Vec::new(),
        restart_policy: RestartPolicy::No,
        compose_project: None,
    }
}

/// The image id for a word: always the same, and shaped like a real one.
pub fn image_id(word: &str) -> String {
    format!("sha256:{}", hex(word))
}

/// 64 hexadecimal digits that differ from word to word (FNV-1a, continued over four blocks).
pub(super) fn hex(word: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    (0..4_u8)
        .map(|block| {
            for byte in word.bytes().chain([block]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            format!("{hash:016x}")
        })
        .collect()
}
