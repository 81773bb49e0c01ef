//! How many instructions the host's hot paths take: counted by valgrind, so that a slower one is found out on any machine, however
//! busy. Times are for `cargo xtask bench`.
//!
//! The build is the one that all tests have, with our own code unoptimised: what counts is that a number stays where it is. Each case is
//! run once and a few times more, and the difference is what one takes. Not a harness of tests, since each count is a process of
//! its own.

#![allow(clippy::print_stdout, reason = "a table is what this is for")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow, bail};
use refit::model::container::{Container, ContainerId, Health, Mount, Object, State};
use refit::model::image::{ImageId, ImageRef};
use refit::recreate::intent::Intent;
use refit::recreate::verify::find_differences;
use refit::sandbox::{DEFAULT_POLICY, Policy, PolicyEngine};
use serde_json::{Value, json};

/// What each case may take, in thousands of instructions.
const CASES: [(Case, u64); 3] = [
    (Case::Intent, 360),
    (Case::Reference, 40),
    (Case::PolicyCall, 670),
];
/// A case that takes less than this share of what it may hides the next one that gets slower.
const SLACK: f64 = 0.7;
const MORE: u64 = 20;
/// Of a single count, as `timeout` reads it. All of them together took less than a minute on two processors.
const COUNT_LIMIT: &str = "5m";

#[derive(Debug, Clone, Copy)]
enum Case {
    /// What a user asked for, of an inspection of usual size; the request for its replacement, and the comparison with what the engine
    /// made of it.
    Intent,
    /// An image's reference, from text.
    Reference,
    /// Store, instance, and the shortest call of the default policy.
    PolicyCall,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Reference => "reference",
            Self::PolicyCall => "policy-call",
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [only, case, times, cache] if only == "only" => {
            let found = CASES.into_iter().find(|(known, _)| known.name() == case);
            let (case, _) = found.context("no such case")?;
            run(case, times.parse()?, Path::new(cache))?;
            Ok(ExitCode::SUCCESS)
        }
        // What `cargo test` was given for all suites: a list, or a name of another one's test.
        given => match given.iter().find(|it| is_about_others(it)) {
            Some(other) => {
                println!("not counted, because of `{other}`");
                Ok(ExitCode::SUCCESS)
            }
            None => check(),
        },
    }
}

fn is_about_others(argument: &str) -> bool {
    argument == "--list" || !(argument.starts_with('-') || "instructions".contains(argument))
}

fn check() -> anyhow::Result<ExitCode> {
    refit_tests::install::ensure(&[("valgrind", "valgrind")])?;
    let cache = &tempfile::tempdir()?;
    // Compiled for the processor that valgrind makes of this one.
    count(Case::PolicyCall, 0, cache.path())?;
    let counted = std::thread::scope(|scope| {
        let counting = CASES.map(|(case, _)| {
            [1, 1 + MORE].map(|times| scope.spawn(move || count(case, times, cache.path())))
        });
        counting.map(|both| both.map(|it| it.join().map_err(|_| anyhow!("a count panicked"))))
    });
    let mut kept = true;
    for ((case, thousands), [one, more]) in CASES.into_iter().zip(counted) {
        let takes = (more??).saturating_sub(one??) / MORE / 1000;
        let within = takes <= thousands;
        let close = takes as f64 >= thousands as f64 * SLACK;
        let said = match (within, close) {
            (true, true) => "ok",
            (false, _) => "MORE THAN IT MAY: make it faster again, or raise the number and say why",
            (true, false) => {
                "far less than it may: lower the number, so that the next one is found out"
            }
        };
        println!(
            "{:<12} {takes:>8} of {thousands} thousand instructions, {said}",
            case.name()
        );
        kept &= within && close;
    }
    Ok(if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Of the whole process.
fn count(case: Case, times: u64, cache: &Path) -> anyhow::Result<u64> {
    let output = Command::new("timeout")
        .args([COUNT_LIMIT, "valgrind"])
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // wasmtime's calls run on stacks of their own.
        .args(["--max-stackframe=8388608", "--smc-check=all-non-file"])
        .arg(std::env::current_exe()?)
        .args(["only", case.name(), &times.to_string()])
        .arg(cache)
        .output()
        .context("cannot run valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{}` failed under valgrind:\n{text}", case.name());
    }
    let counted = text
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .with_context(|| format!("valgrind counted nothing:\n{text}"))?;
    Ok(counted.1.trim().parse()?)
}

fn run(case: Case, times: u64, cache: &Path) -> anyhow::Result<()> {
    match case {
        Case::Intent => {
            let (container, image) = (container()?, object(image_config())?);
            for _ in 0..times {
                let wanted = Intent::from_container(&container, &image)
                    .to_replacement("ghcr.io/acme/app:latest", &id('2'));
                std::hint::black_box(find_differences(&wanted, &container));
            }
        }
        Case::Reference => {
            for _ in 0..times {
                let text = "ghcr.io/molecule-ai/workspace-template-claude-code:latest";
                std::hint::black_box(std::hint::black_box(text).parse::<ImageRef>()?);
            }
        }
        Case::PolicyCall => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let engine = PolicyEngine::new()?.with_cache(cache.to_owned());
            let load = engine.load(DEFAULT_POLICY, "the default policy");
            let policy: Policy = runtime.block_on(load)?;
            for _ in 0..times {
                runtime.block_on(policy.validate_config("{}"))?;
            }
        }
    }
    Ok(())
}

fn id(digit: char) -> ImageId {
    ImageId::new(format!("sha256:{}", digit.to_string().repeat(64)))
}

fn object(value: Value) -> anyhow::Result<Object> {
    value.as_object().cloned().context("an object")
}

/// As a runtime's image has it.
fn image_config() -> Value {
    json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "MODEL_DEFAULT=model-v1", "WS_VERSION=v1"],
        "Cmd": ["serve", "--port", "8080"], "Entrypoint": ["/usr/bin/tini", "--"], "WorkingDir": "/workspace", "User": "agent",
        "ExposedPorts": {"8080/tcp": {}}, "Volumes": {"/cache": {}}, "StopSignal": "SIGTERM",
        "Labels": {"org.opencontainers.image.version": "1.2.3", "org.opencontainers.image.source": "https://example.org/acme"},
        "Healthcheck": {"Test": ["CMD", "/health"], "Interval": 10_000_000_000_u64, "Retries": 3},
    })
}

/// As an engine shows a container of that image, in what a replacement looks at.
fn container() -> anyhow::Result<Container> {
    let mut config = image_config();
    let own = json!({
        "Hostname": "0123456789ab", "Image": "ghcr.io/acme/app:latest", "AttachStdout": true, "Tty": false,
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "MODEL_DEFAULT=model-v1", "WS_VERSION=v1", "OPERATOR=ana", "TOKEN=x"],
        "Labels": {"org.opencontainers.image.version": "1.2.3", "platform.workspace": "17"},
    });
    for (key, value) in object(own)? {
        config[key] = value;
    }
    let host_config = json!({
        "Binds": ["data-17:/data"], "NetworkMode": "platform", "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
        "PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18080"}]}, "CapAdd": null, "CapDrop": ["NET_RAW"], "Memory": 1_073_741_824_u64,
        "NanoCpus": 500_000_000_u64, "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m"}}, "ShmSize": 67_108_864_u64, "Runtime": "runc",
        "IpcMode": "private", "Ulimits": null, "Dns": [], "ExtraHosts": ["platform:172.20.0.1"], "ReadonlyRootfs": false, "Init": true,
        "MaskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore"], "ReadonlyPaths": ["/proc/bus", "/proc/fs"],
    });
    let endpoint = json!({
        "Aliases": ["ws-ana", "0123456789ab"], "NetworkID": "n", "EndpointID": "e", "Gateway": "172.20.0.1", "IPAddress": "172.20.0.7", "IPPrefixLen": 16,
        "MacAddress": "02:42:ac:14:00:07", "IPAMConfig": null, "Links": null, "DriverOpts": null,
    });
    let mount = |name: &str, destination: &str| Mount {
        kind: "volume".into(),
        name: Some(name.into()),
        source: None,
        destination: destination.into(),
        read_write: true,
    };
    Ok(Container {
        id: ContainerId::new("0123456789ab".repeat(5) + "0123"),
        name: "ws-ana".into(),
        image_id: id('1'),
        manifest_digest: None,
        platform: None,
        state: State::Running,
        health: Health::Healthy,
        last_health_check: None,
        exit_code: None,
        error: None,
        created: jiff::Timestamp::UNIX_EPOCH,
        started: None,
        finished: None,
        config: object(config)?,
        host_config: object(host_config)?,
        endpoints: BTreeMap::from([("platform".to_owned(), object(endpoint)?)]),
        published_ports: vec![],
        mounts: vec![mount("data-17", "/data"), mount(&"ab".repeat(32), "/cache")],
        upper_dir: None,
    })
}
