//! Every setting of the host that this engine takes comes back as it was.

use bollard::models::HostConfig;
use refit::engine::Engine as _;
use refit::model::container::ContainerName;
use refit::recreate::intent::Intent;
use refit::recreate::verify::find_differences;
use refit_tests::{ImageSpec, with_world};
use serde_json::{Value, json};

use crate::bench::{Bench, docker, object};
use crate::changes::changes;
use crate::fields;

/// Fields of the model that no container on this engine can be given, and why.
const NOT_SETTABLE: &[(&str, &str)] = &[
    ("AutoRemove", "such a container is refused: state.rs"),
    (
        "Annotations",
        "Docker 24 and later; this engine drops it without a word",
    ),
    (
        "BlkioWeight",
        "the kernel must have weights for block devices; this engine discards it where it has none",
    ),
    ("BlkioWeightDevice", "as `BlkioWeight`"),
    ("CpuPercent", "Windows; discarded"),
    ("IOMaximumIOps", "Windows; refused"),
    ("IOMaximumBandwidth", "Windows; refused"),
    (
        "StorageOpt",
        "overlay2 takes it on xfs with project quotas alone",
    ),
];

/// A disk of this machine, to be limited.
fn disk() -> String {
    let disks = std::fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten();
    let mut paths = disks.map(|disk| format!("/dev/{}", disk.file_name().display()));
    paths
        .find(|path| std::path::Path::new(path).exists())
        .expect("a machine that runs containers has a disk")
}

/// What one container can have all at once, and run.
pub(crate) fn most(volume: &str) -> Value {
    let disk = disk();
    json!({
        "Binds": [format!("{volume}:/named"), "/usr:/bound:ro,rprivate"],
        "BlkioDeviceReadBps": [{"Path": disk, "Rate": 1_000_000_000}],
        "BlkioDeviceWriteBps": [{"Path": disk, "Rate": 1_000_000_001}],
        "BlkioDeviceReadIOps": [{"Path": disk, "Rate": 1_000_002}],
        "BlkioDeviceWriteIOps": [{"Path": disk, "Rate": 1_000_003}],
        "CpuCount": 1,
        "CpuRealtimePeriod": 1_000_000,
        "Isolation": "default",
        "CapAdd": ["CAP_NET_ADMIN", "CAP_SYS_PTRACE"],
        "CapDrop": ["CAP_MKNOD"],
        "CgroupParent": "/refit-tests",
        "Cgroup": "",
        "ConsoleSize": [0, 0],
        "ContainerIDFile": "/tmp/id-file",
        "CpuShares": 512,
        "CpuPeriod": 100_000,
        "CpuQuota": 50_000,
        "CpusetCpus": "0",
        "CpusetMems": "0",
        "DeviceCgroupRules": ["c 1:3 mr"],
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/refit", "CgroupPermissions": "rw"}],
        "Dns": ["10.9.8.7"],
        "DnsOptions": ["ndots:2"],
        "DnsSearch": ["example.org"],
        "ExtraHosts": ["somewhere:10.1.2.3"],
        "GroupAdd": ["1000", "44"],
        "Init": true,
        "IpcMode": "shareable",
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "3m", "max-file": "2"}},
        "MaskedPaths": ["/proc/kcore"],
        "Memory": 100 << 20,
        "MemoryReservation": 50 << 20,
        "MemorySwap": 200 << 20,
        "MemorySwappiness": 7,
        "Mounts": [
            {"Type": "volume", "Source": volume, "Target": "/again", "ReadOnly": true, "VolumeOptions": {"NoCopy": true}},
            {"Type": "bind", "Source": "/usr", "Target": "/bound-too", "Consistency": "default", "BindOptions": {"Propagation": "private", "NonRecursive": true}},
            {"Type": "tmpfs", "Target": "/scratch", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o1770}},
        ],
        "NetworkMode": "bridge",
        "OomKillDisable": true,
        "OomScoreAdj": 300,
        "PidMode": "host",
        "PidsLimit": 99,
        "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": crate::ports::free_port().expect("some port is free").to_string()}]},
        "ReadonlyPaths": ["/proc/sys"],
        "ReadonlyRootfs": true,
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        "Runtime": "runc",
        "SecurityOpt": ["no-new-privileges", "seccomp=unconfined"],
        "ShmSize": 8 << 20,
        "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.msgmax": "65000"},
        "Tmpfs": {"/run": "rw,size=1m", "/tmp": ""},
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}],
        "UsernsMode": "host",
        "VolumeDriver": "local",
    })
}

/// What cannot go with that.
fn others() -> Vec<(&'static str, Value)> {
    vec![
        // Tier 1.
        (
            "closed",
            json!({"ReadonlyRootfs": true, "CapDrop": ["ALL"], "Tmpfs": {"/tmp": "size=1m"}, "NanoCpus": 500_000_000}),
        ),
        // Tier 4.
        (
            "host-network",
            json!({"NetworkMode": "host", "UTSMode": "host", "IpcMode": "host"}),
        ),
        (
            "no-network",
            json!({"NetworkMode": "none", "IpcMode": "none", "LogConfig": {"Type": "none", "Config": {}}}),
        ),
        (
            "nothing-masked",
            json!({"MaskedPaths": [], "ReadonlyPaths": [], "RestartPolicy": {"Name": "unless-stopped"}}),
        ),
        (
            "all-ports",
            json!({"PublishAllPorts": true, "RestartPolicy": {"Name": "always"}}),
        ),
    ]
}

/// What an engine takes down, and not every machine can start.
fn never_started() -> [(&'static str, Value); 2] {
    let gpu = json!({
        // The kernel must be built for real-time scheduling of groups, and a card be there.
        "CpuRealtimeRuntime": 1000,
        "DeviceRequests": [{"Driver": "nvidia", "Count": -1, "DeviceIDs": null, "Capabilities": [["gpu", "compute"]], "Options": {"a": "b"}}],
    });
    // A workspace that may do anything, as the platform's tier 3 has it. A virtual machine's root may do less.
    let privileged = json!({"Privileged": true, "PidMode": "host", "CgroupnsMode": "private"});
    [("gpu", gpu), ("privileged", privileged)]
}

/// 42, 55
#[tokio::test]
async fn every_setting_of_the_host_comes_back() -> anyhow::Result<()> {
    with_world("every setting of the host", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (w.load(ImageSpec::new("v1")).await?, w.load(ImageSpec::new("v2")).await?);
        let provider = w.create(refit_tests::ContainerSpec::named(&format!("{}-provider", w.prefix()), &old).volume(&w.volume("lent").await?, "/lent")).await?;
        let linked = bench.run(&format!("{}-linked", w.prefix()), &old, json!({}), json!({})).await?;
        let mut most = most(&w.volume("data").await?);
        most["VolumesFrom"] = json!([format!("{}:ro", provider.name)]);
        most["Links"] = json!([format!("{}:database", linked.name)]);

        let mut documents = vec![("most", most)];
        documents.extend(others());
        let never_started = never_started();
        let known = documents.iter().chain(&never_started);
        let known: Vec<&Value> = known.map(|(_, document)| document).collect();
        fields::all_known::<HostConfig>(&known, NOT_SETTABLE);


        let mut problems = Vec::new();
        for (suffix, document) in documents {
            let name = w.name(suffix);
            let before = bench.run(&name, &old, json!({}), document.clone()).await?;
            for (field, asked) in object(document) {
                let made = before.host_config.get(&field).cloned().unwrap_or_default();
                if made.is_null() && !asked.is_null() {
                    problems.push(format!("{suffix}: this engine drops `{field}`, so the round trip says nothing about it"));
                }
            }
            match bench.refresh(&name, &new).await? {
                Ok(_) => {
                    let after = bench.inspect(&name).await?;
                    let changes = changes(&before, &after);
                    problems.extend(changes.into_iter().map(|change| format!("{suffix}: {change}")));
                }
                Err(error) => problems.push(format!("{suffix}: {}", crate::bench::told(&error))),
            }
            w.remove_container(&name).await?;
        }
        assert!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(())
    })
    .await
}

/// 42: what cannot be started here is made, and made again from what the engine shows of it.
#[tokio::test]
async fn settings_for_other_machines_come_back_too() -> anyhow::Result<()> {
    with_world("settings for other machines", |w| async move {
        let bench = Bench::new(&w);
        let image = w.load(ImageSpec::new("v1")).await?;
        let engine = docker(&w);
        for (suffix, document) in never_started() {
            let id = bench
                .create(&w.name(suffix), &image, json!({}), document.clone())
                .await?;
            let before = engine.inspect(&id).await?;
            for field in object(document).keys() {
                assert!(
                    !before.host_config[field].is_null(),
                    "this engine drops `{field}`"
                );
            }
            let of_image = engine.image(&image).await?;
            let wanted = Intent::from_container(&before, &of_image.config)
                .to_replacement(&image, &of_image.id);
            let again = engine
                .create(
                    &ContainerName::new(w.name(&format!("{suffix}-again"))),
                    &wanted.request,
                    None,
                )
                .await?;
            let after = engine.inspect(&again).await?;
            assert_eq!(find_differences(&wanted, &after), Vec::<String>::new());
            assert_eq!(changes(&before, &after), Vec::<String>::new());
        }
        Ok(())
    })
    .await
}
