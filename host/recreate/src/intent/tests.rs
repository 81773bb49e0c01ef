//! Tests of the intent, case by case: which values are kept, and which follow the new image. The numbers are those of
//! research/updaters.md, section 2.6.

use refit_model::container::{Health, Mount, PublishedPort, State};
use refit_model::image::ImageId;

use super::*;

fn object(value: Value) -> Object {
    value.as_object().cloned().unwrap()
}

pub(crate) fn container(config: Value, host_config: Value) -> Container {
    Container {
        id: ContainerId::new("0123456789ab".to_owned() + &"c".repeat(52)),
        name: "ws-a".into(),
        image_id: ImageId::new("sha256:old"),
        manifest_digest: None,
        platform: None,
        state: State::Running,
        health: Health::None,
        last_health_check: None,
        exit_code: None,
        error: None,
        created: jiff::Timestamp::UNIX_EPOCH,
        started: None,
        finished: None,
        config: object(config),
        host_config: object(host_config),
        endpoints: BTreeMap::new(),
        published_ports: vec![],
        mounts: vec![],
        upper_dir: None,
    }
}

fn intent(config: Value, image: Value) -> Value {
    Value::Object(Intent::from_container(&container(config, json!({})), &object(image)).config)
}

/// Compares the intent of a container with an expectation. No other helper knows how an intent is made.
#[track_caller]
fn check(config: Value, image: Value, expected: Value) {
    assert_eq!(intent(config, image), expected);
}

#[test]
fn image_environment_follows_image_and_users_stays() {
    // 20
    check(
        json!({"Env": ["PATH=/bin", "MODEL=v1", "KEY=mine"]}),
        json!({"Env": ["PATH=/bin", "MODEL=v1", "KEY=theirs"]}),
        json!({"Env": ["KEY=mine"]}),
    );
}

#[test]
fn command_is_kept_only_if_user_set_it() {
    // 22
    let image = json!({"Entrypoint": ["/e"], "Cmd": ["c"]});
    check(
        json!({"Entrypoint": ["/e"], "Cmd": ["c"]}),
        image.clone(),
        json!({}),
    );
    check(
        json!({"Entrypoint": ["/e"], "Cmd": ["mine"]}),
        image.clone(),
        json!({"Cmd": ["mine"]}),
    );
    check(
        json!({"Entrypoint": ["/mine"], "Cmd": null}),
        image.clone(),
        json!({"Entrypoint": ["/mine"]}),
    );
    check(
        json!({"Entrypoint": ["/mine"], "Cmd": ["c"]}),
        image.clone(),
        json!({"Entrypoint": ["/mine"], "Cmd": ["c"]}),
    );
    check(
        json!({"Entrypoint": ["/e"], "Cmd": null}),
        image.clone(),
        json!({"Entrypoint": ["/e"]}),
    );
    check(
        json!({"Entrypoint": null, "Cmd": ["sh"]}),
        image,
        json!({"Entrypoint": [""], "Cmd": ["sh"]}),
    );
}

#[test]
fn image_labels_follow_image_and_users_stay() {
    // 23
    check(
        json!({"Labels": {"version": "1", "owner": "me"}}),
        json!({"Labels": {"version": "1"}}),
        json!({"Labels": {"owner": "me"}}),
    );
}

#[test]
fn health_check_is_kept_field_by_field() {
    // 24
    let image = json!({"Healthcheck": {"Test": ["CMD", "/h"], "Interval": 5}});
    check(
        json!({"Healthcheck": {"Test": ["CMD", "/h"], "Interval": 5}}),
        image.clone(),
        json!({}),
    );
    check(
        json!({"Healthcheck": {"Test": ["CMD", "/h"], "Interval": 9}}),
        image.clone(),
        json!({"Healthcheck": {"Interval": 9}}),
    );
    check(
        json!({"Healthcheck": {"Test": ["NONE"]}}),
        image,
        json!({"Healthcheck": {"Test": ["NONE"]}}),
    );
}

#[test]
fn other_image_defaults_follow_image() {
    // 25
    let image = json!({"User": "app", "WorkingDir": "/app", "StopSignal": "SIGINT", "Shell": ["/bin/sh"],
        "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}}});
    check(image.clone(), image.clone(), json!({}));
    check(
        json!({"User": "1000", "WorkingDir": "/w", "StopSignal": "SIGQUIT", "StopTimeout": 30,
            "Volumes": {"/data": {}, "/mine": {}}, "ExposedPorts": {"80/tcp": {}, "81/tcp": {}}}),
        image,
        json!({"User": "1000", "WorkingDir": "/w", "StopSignal": "SIGQUIT", "StopTimeout": 30,
            "Volumes": {"/mine": {}}, "ExposedPorts": {"81/tcp": {}}}),
    );
}

#[test]
fn hostname_is_kept_only_if_set_and_allowed() {
    // 18, 19
    check(json!({"Hostname": "0123456789ab"}), json!({}), json!({}));
    check(
        json!({"Hostname": "box", "Domainname": "d"}),
        json!({}),
        json!({"Hostname": "box", "Domainname": "d"}),
    );
    for shared in [
        json!({"NetworkMode": "container:abc"}),
        json!({"UTSMode": "host"}),
    ] {
        let container = container(json!({"Hostname": "box", "Domainname": "d"}), shared);
        assert_eq!(
            Intent::from_container(&container, &Object::new()).config,
            Object::new()
        );
    }
}

#[test]
fn unknown_fields_are_kept() {
    check(
        json!({"FromTheFuture": {"a": 1}, "Tty": true}),
        json!({}),
        json!({"FromTheFuture": {"a": 1}, "Tty": true}),
    );
    let container = container(json!({}), json!({"NewKnob": 7, "Unset": null}));
    assert_eq!(
        Intent::from_container(&container, &Object::new()).host_config,
        object(json!({"NewKnob": 7}))
    );
}

fn mount(name: &str, destination: &str, read_write: bool) -> Mount {
    Mount {
        kind: "volume".into(),
        name: Some(name.into()),
        source: None,
        destination: destination.into(),
        read_write,
    }
}

#[test]
fn anonymous_volumes_are_mounted_by_generated_name() {
    // 39
    let (a, b, c) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
    let mut container = container(
        json!({}),
        json!({"Binds": ["named:/named", "/host:/bound:ro"], "Mounts": [{"Type": "volume", "Target": "/m"}]}),
    );
    container.mounts = vec![
        mount(&a, "/data", true),
        mount(&b, "/ro", false),
        mount(&c, "/m", true),
        mount("named", "/named", true),
    ];
    let host_config = Intent::from_container(&container, &Object::new()).host_config;
    assert_eq!(
        Value::Object(host_config),
        json!({
            "Binds": ["named:/named", "/host:/bound:ro", format!("{a}:/data"), format!("{b}:/ro:ro")],
            "Mounts": [{"Type": "volume", "Target": "/m", "Source": c}],
        })
    );
}

#[test]
fn engine_chosen_port_is_kept() {
    // 44
    let mut container = container(
        json!({}),
        json!({"PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}], "9/udp": [{"HostIp": "", "HostPort": "99"}]}}),
    );
    let bound = |host_address: &str, host_port| PublishedPort {
        container_port: 8000,
        protocol: "tcp".into(),
        host_address: host_address.into(),
        host_port,
    };
    container.published_ports = vec![bound("0.0.0.0", 1), bound("127.0.0.1", 49153)];
    let host_config = Intent::from_container(&container, &Object::new()).host_config;
    assert_eq!(
        host_config["PortBindings"]["8000/tcp"][0]["HostPort"],
        "49153"
    );
    assert_eq!(host_config["PortBindings"]["9/udp"][0]["HostPort"], "99");
}

fn bindings(host_config: Value, published: &[(u16, &str, u16)]) -> Value {
    let mut container = container(json!({}), host_config);
    container.published_ports = published
        .iter()
        .map(|(container_port, host_address, host_port)| PublishedPort {
            container_port: *container_port,
            protocol: "tcp".into(),
            host_address: (*host_address).into(),
            host_port: *host_port,
        })
        .collect();
    Intent::from_container(&container, &Object::new()).host_config["PortBindings"].take()
}

#[test]
fn engine_chosen_port_is_used_once() {
    // 44, 45
    let wish = |port: &str| json!({"HostIp": "", "HostPort": port});
    let published = [
        (80, "0.0.0.0", 1),
        (80, "::", 1),
        (80, "0.0.0.0", 2),
        (80, "::", 2),
        (80, "0.0.0.0", 3),
        (80, "::", 3),
    ];
    assert_eq!(
        bindings(
            json!({"PortBindings": {"80/tcp": [wish(""), wish("2"), wish("1-9")]}}),
            &published
        ),
        json!({"80/tcp": [wish("2"), wish("1"), wish("3")]}),
    );
    assert_eq!(
        bindings(json!({"PortBindings": {"80/tcp": [wish("")]}}), &[]),
        json!({"80/tcp": [wish("")]})
    );
}

#[test]
fn each_address_family_keeps_its_port() {
    // 44: Docker 20.10 takes the next number for the second family
    let published = [
        (80, "0.0.0.0", 1),
        (80, "::", 2),
        (81, "0.0.0.0", 2),
        (81, "::", 3),
    ];
    let kept = |first: &str, second: &str| json!([{"HostIp": "0.0.0.0", "HostPort": first}, {"HostIp": "::", "HostPort": second}]);
    let wish = json!([{"HostIp": "", "HostPort": ""}]);
    assert_eq!(
        bindings(
            json!({"PortBindings": {"80/tcp": wish, "81/tcp": wish}}),
            &published
        ),
        json!({"80/tcp": kept("1", "2"), "81/tcp": kept("2", "3")}),
    );
}

#[test]
fn ports_of_publish_all_are_kept() {
    // 44
    let published = [(80, "0.0.0.0", 1), (80, "::", 1), (81, "0.0.0.0", 2)];
    let kept = json!({"80/tcp": [{"HostIp": "", "HostPort": "1"}], "81/tcp": [{"HostIp": "", "HostPort": "2"}]});
    assert_eq!(bindings(json!({"PublishAllPorts": true}), &published), kept);
    let again = json!({"PublishAllPorts": true, "PortBindings": kept});
    assert_eq!(bindings(again, &published), kept, "once is enough");
    assert_eq!(
        bindings(json!({"PublishAllPorts": true, "PortBindings": {}}), &[]),
        json!({})
    );
}

#[test]
fn links_and_ulimits_use_request_form() {
    // 37, and Podman's answer
    let container = container(
        json!({}),
        json!({"Links": ["/db:/ws-a/database"], "Ulimits": [{"Name": "RLIMIT_NOFILE", "Soft": 1, "Hard": 2}]}),
    );
    let host_config = Intent::from_container(&container, &Object::new()).host_config;
    assert_eq!(host_config["Links"], json!(["db:database"]));
    assert_eq!(host_config["Ulimits"][0]["Name"], "nofile");
}

fn on_networks(mode: &str, endpoints: Value) -> Intent {
    let mut container = container(
        json!({"Hostname": "0123456789ab"}),
        json!({"NetworkMode": mode}),
    );
    container.endpoints = object(endpoints)
        .into_iter()
        .map(|(name, endpoint)| (name, object(endpoint)))
        .collect();
    Intent::from_container(&container, &Object::new())
}

#[test]
fn aliases_and_static_addresses_are_kept() {
    // 29, 31, 33
    let intent = on_networks(
        "net",
        json!({"net": {"Aliases": ["web", "0123456789ab"], "IPAMConfig": null, "IPAddress": "10.0.0.2", "MacAddress": "02:42:0a:00:00:02", "NetworkID": "n1"}}),
    );
    assert_eq!(
        intent.primary,
        Some((
            "net".into(),
            object(json!({"NetworkID": "n1", "Aliases": ["web"]}))
        ))
    );
    let intent = on_networks(
        "net",
        json!({"net": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}, "IPAddress": "10.0.0.9", "NetworkID": "n1"}}),
    );
    assert_eq!(
        intent.primary,
        Some((
            "net".into(),
            object(json!({"NetworkID": "n1", "IPAMConfig": {"IPv4Address": "10.0.0.9"}}))
        ))
    );
}

#[test]
fn primary_network_named_by_id_comes_first() {
    // 30, 32
    let networks =
        json!({"a": {"NetworkID": "id-a"}, "b": {"NetworkID": "id-b", "Aliases": ["x"]}});
    let intent = on_networks("id-b", networks);
    assert_eq!(
        intent.primary,
        Some((
            "id-b".into(),
            object(json!({"NetworkID": "id-b", "Aliases": ["x"]}))
        ))
    );
    assert_eq!(intent.others.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn disconnected_network_is_not_primary() {
    let intent = on_networks(
        "gone",
        json!({"a": {"NetworkID": "id-a", "Aliases": ["x"]}, "b": {"NetworkID": "id-b"}}),
    );
    assert_eq!(intent.host_config["NetworkMode"], "a");
    assert_eq!(
        intent.primary,
        Some((
            "a".into(),
            object(json!({"NetworkID": "id-a", "Aliases": ["x"]}))
        ))
    );
    assert_eq!(intent.others.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn shared_and_default_networks_get_no_endpoint_settings() {
    // 35
    let default = on_networks(
        "default",
        json!({"bridge": {"Aliases": ["0123456789ab", "x"], "NetworkID": "n"}}),
    );
    assert_eq!(default.primary, Some(("bridge".into(), Object::new())));
    for mode in ["host", "none", "container:abc"] {
        let intent = on_networks(mode, json!({mode: {"NetworkID": "n"}}));
        assert_eq!((intent.primary, intent.others.len()), (None, 0), "{mode}");
    }
}

#[test]
fn replacement_has_only_user_labels() {
    let container = container(
        json!({"Image": "x:1", "Labels": {"owner": "me"}}),
        json!({}),
    );
    let replacement = Intent::from_container(&container, &Object::new())
        .to_replacement("x:2", &ImageId::new("sha256:new"));
    assert_eq!(replacement.request.config["Labels"], json!({"owner": "me"}));
    assert_eq!(replacement.request.config["Image"], "x:2");
}

#[test]
fn compose_image_label_names_new_image() {
    // 50
    let labels = json!({"Labels": {"com.docker.compose.image": "sha256:old", "com.docker.compose.project": "shop"}});
    let replacement = Intent::from_container(&container(labels, json!({})), &Object::new())
        .to_replacement("x:2", &ImageId::new("sha256:new"));
    assert_eq!(
        replacement.request.config["Labels"],
        json!({"com.docker.compose.image": "sha256:new", "com.docker.compose.project": "shop"})
    );
}

#[test]
fn dependent_refers_to_new_container() {
    // 36, 37, 40
    let mut provider = container(json!({}), json!({}));
    provider.name = "db".into();
    let (from, to) = (provider.id.clone(), ContainerId::new("b".repeat(64)));
    let dependent = container(
        json!({}),
        json!({
            "NetworkMode": format!("container:{from}"), "PidMode": format!("container:{from}"), "IpcMode": "private",
            "Links": ["/db:/ws-a/database", "/other:/ws-a/db"],
            "VolumesFrom": ["db:ro", format!("{}:ro", from.short()), "other"],
        }),
    );
    let mut intent = Intent::from_container(&dependent, &Object::new());
    intent.follow_provider(&provider, &to);
    assert_eq!(intent.host_config["NetworkMode"], format!("container:{to}"));
    assert_eq!(intent.host_config["PidMode"], format!("container:{to}"));
    assert_eq!(intent.host_config["IpcMode"], "private");
    let temporary_name = names::temporary_name(&from);
    assert_eq!(
        intent.host_config["Links"],
        json!([format!("{temporary_name}:database"), "other:db"])
    );
    assert_eq!(
        intent.host_config["VolumesFrom"],
        json!(["db:ro", format!("{to}:ro"), "other"])
    );
}

/// Returns an inspection as engines write it from API 1.44 on: names and addresses per endpoint, without saying which of them a
/// user requested. Written after the interface description; Docker 28.5.2 writes the same.
fn newer() -> Container {
    let endpoint = |mac: &str| {
        object(json!({
            "IPAMConfig": null, "Links": null, "Aliases": ["web"], "DriverOpts": null, "GwPriority": 0,
            "DNSNames": ["ws-a", "web", "0123456789ab"], "MacAddress": mac, "NetworkID": "n", "EndpointID": "e",
            "Gateway": "172.18.0.1", "IPAddress": "172.18.0.2", "IPPrefixLen": 16,
        }))
    };
    let mut container = container(
        json!({
            "Image": "x:1", "Hostname": "0123456789ab",
            "Healthcheck": {"Test": ["CMD", "/h"], "StartInterval": 5_000_000_000_u64},
        }),
        json!({
            "NetworkMode": "net", "CgroupnsMode": "private", "MemorySwappiness": null, "OomKillDisable": null, "KernelMemory": 0,
            "Annotations": {"io.example": "1"},
            "Mounts": [{"Type": "volume", "Source": "v", "Target": "/d", "VolumeOptions": {"Subpath": "below"}}],
        }),
    );
    container.endpoints = [
        ("net".into(), endpoint("02:42:ac:12:00:02")),
        ("other".into(), endpoint("02:42:ac:13:00:02")),
    ]
    .into();
    container
}

#[test]
fn newer_engine_networks_are_requested_as_on_older() {
    // 30, 33
    let replacement = Intent::from_container(&newer(), &Object::new())
        .to_replacement("x:2", &ImageId::new("sha256:new"));
    let wish = object(json!({"NetworkID": "n", "Aliases": ["web"], "GwPriority": 0}));
    assert_eq!(
        replacement.request.endpoint,
        Some(("net".to_owned(), wish.clone())),
        "what the engine gave is not asked for"
    );
    assert_eq!(replacement.networks, [("other".to_owned(), wish)]);
}

#[test]
fn newer_engine_fields_are_kept_and_unset_dropped() {
    // 24, 38, 42, 43
    let replacement = Intent::from_container(&newer(), &Object::new())
        .to_replacement("x:2", &ImageId::new("sha256:new"));
    let host_config = &replacement.request.host_config;
    assert_eq!(
        host_config["Mounts"][0]["VolumeOptions"]["Subpath"],
        "below"
    );
    assert_eq!(host_config["Annotations"], json!({"io.example": "1"}));
    assert_eq!(host_config["CgroupnsMode"], "private");
    for unset in ["MemorySwappiness", "OomKillDisable"] {
        assert!(!host_config.contains_key(unset), "cgroup v2 refuses it");
    }
    assert_eq!(
        replacement.request.config["Healthcheck"]["StartInterval"],
        5_000_000_000_u64
    );
}

#[test]
fn default_in_another_spelling_is_not_requested() {
    let image = json!({"WorkingDir": "/app/", "StopSignal": "SIGINT", "Volumes": {"/vol/": {}}, "ExposedPorts": {"80": {}}});
    let made = json!({"WorkingDir": "/app", "StopSignal": "2", "Volumes": {"/vol": {}}, "ExposedPorts": {"80/tcp": {}}});
    check(made, image.clone(), json!({}));
    let wish = json!({"WorkingDir": "/app/x", "StopSignal": "3", "Volumes": {"/mine/": {}}, "ExposedPorts": {"80/udp": {}}});
    check(wish.clone(), image, wish);
}

#[test]
fn anonymous_volume_is_found_in_another_spelling() {
    let (a, b, c) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
    let mut container = container(
        json!({"Volumes": {"/cache/": {}}}),
        json!({"Mounts": [{"Type": "volume", "Target": "/x/../data/"}], "Binds": ["/bound", "/etc:/host/:ro"]}),
    );
    container.mounts = vec![
        mount(&a, "/data", true),
        mount(&b, "/bound", true),
        mount(&c, "/cache", true),
    ];
    let host_config = Intent::from_container(&container, &Object::new()).host_config;
    assert_eq!(
        host_config["Mounts"],
        json!([{"Type": "volume", "Target": "/x/../data/", "Source": a}])
    );
    let binds = [
        format!("{b}:/bound"),
        "/etc:/host/:ro".into(),
        format!("{c}:/cache"),
    ];
    assert_eq!(host_config["Binds"], json!(binds));
}

#[test]
fn engine_default_path_list_is_not_requested() {
    let masked = json!([
        "/proc/asound",
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware"
    ]);
    let host_config = |masked: Value| {
        let container = container(json!({}), json!({ "MaskedPaths": masked }));
        Intent::from_container(&container, &Object::new()).host_config
    };
    assert_eq!(host_config(masked), Object::new());
    for wish in [json!([]), json!(["/proc/kcore"])] {
        assert_eq!(host_config(wish.clone())["MaskedPaths"], wish);
    }
}

#[test]
fn processor_limit_is_requested_once() {
    let podman = json!({"NanoCpus": 500_000_000, "CpuPeriod": 100_000, "CpuQuota": 50_000});
    let intent = Intent::from_container(&container(json!({}), podman), &Object::new());
    assert_eq!(intent.host_config, object(json!({"NanoCpus": 500_000_000})));
    let quota = json!({"NanoCpus": 0, "CpuPeriod": 100_000, "CpuQuota": 50_000});
    let intent = Intent::from_container(&container(json!({}), quota.clone()), &Object::new());
    assert_eq!(intent.host_config, object(quota));
}
