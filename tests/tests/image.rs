//! What is handed out, as `cargo xtask dist` has built it: the static program, and the image with nothing but it. `cargo xtask
//! image` runs this; `REFIT_DIST` says where all of it is.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bollard::models::{HealthConfig, HealthStatusEnum};
use refit::sandbox::DEFAULT_POLICY;
use refit_tests::registry::{self, Registry};
use refit_tests::world::{Published, Running};
use refit_tests::{ContainerSpec, ImageSpec, Refit, World, http, progress, python, with_world};
use regex::bytes::Regex;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What is handed out may have, of a program that is not optimised as that one is there is nothing to say.
const PROGRAM_BYTES_MAX: u64 = 25_000_000;
const RUNTIME_BYTES_MAX: u64 = 14_000_000;
const IMAGE_BYTES_MAX: u64 = 12_000_000;
/// Of a daemon that has nothing to do: resident, and from its start to its first answer, in milliseconds.
const RESIDENT_BYTES_MAX: u64 = 20 << 20;
const READY_MS_MAX: u64 = 50;

/// In the image, nobody.
const USER: &str = "65532:65532";
const TOKEN: &str = "a-token-for-the-image";
const PORT: u16 = 8787;

fn dist() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("REFIT_DIST")
        .context("REFIT_DIST does not say where the program is; `cargo xtask image` does")?;
    Ok(PathBuf::from(folder))
}

/// Holds for the profile that is handed out.
fn is_at_most(most: u64, found: u64, unit: &str) -> anyhow::Result<()> {
    let profile = std::env::var("REFIT_DIST_PROFILE")
        .context("REFIT_DIST_PROFILE is not set; `cargo xtask image` does")?;
    if profile != "dist" {
        progress(&format!(
            "NOT HELD to {most} {unit}: it was built with the profile `{profile}`"
        ));
        return Ok(());
    }
    ensure!(found <= most, "{found} {unit}, and {most} at most");
    Ok(())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn program() -> anyhow::Result<PathBuf> {
    Ok(dist()?.join(format!("linux-{}/refit", architecture())))
}

/// The one without a compiler.
fn runtime() -> anyhow::Result<PathBuf> {
    Ok(program()?.with_file_name("refit-runtime"))
}

/// The context as `docker build` would send it.
fn context() -> anyhow::Result<Vec<u8>> {
    let folder = dist()?;
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_path_with_name(folder.join("Dockerfile"), "Dockerfile")?;
    for part in ["image", &format!("linux-{}", architecture())] {
        tar.append_dir_all(part, folder.join(part))?;
    }
    Ok(tar.into_inner()?)
}

async fn built(w: &World) -> anyhow::Result<String> {
    w.build(context()?, &[("TARGETARCH", architecture())]).await
}

/// A way of running the image as docs/packaging.md says.
struct Handed<'a> {
    w: &'a World,
    image: String,
    socket: PathBuf,
    home: TempDir,
}

impl<'a> Handed<'a> {
    async fn new(w: &'a World, registry: &Registry, runtimes: &[&str]) -> anyhow::Result<Self> {
        let socket = w.docker_host().strip_prefix("unix://");
        let socket = socket.context("the engine is at no socket of this machine")?;
        let home = tempfile::Builder::new().prefix("refit-image-").tempdir()?;
        let containers = format!("ws-{}-*", w.prefix());
        let images = format!("{}/{}/workspace-template-*", registry.host(), w.prefix());
        let config = format!(
            "[policy.config]\nimages = {}\nruntimes = {}\ncontainers = {}\n[grants]\nimages = [{}]\ncontainers = [{}]\n[proof]\ngrace_seconds = 1\n",
            json!(w.template(registry)),
            json!(runtimes),
            json!(containers),
            json!(images),
            json!(containers),
        );
        fs::write(home.path().join("refit.toml"), config)?;
        Ok(Self {
            w,
            image: built(w).await?,
            socket: socket.into(),
            home,
        })
    }

    /// With the engine's socket and a configuration, and without the right to open the socket.
    fn without_group(&self, name: &str, arguments: &[&str]) -> ContainerSpec {
        let name = match name.starts_with("ws-") {
            true => name.to_owned(),
            false => format!("{}-{name}", self.w.prefix()),
        };
        let config = self.home.path().join("refit.toml");
        ContainerSpec::named(&name, &self.image)
            .cmd(arguments)
            .volume(&self.socket.display().to_string(), "/var/run/docker.sock")
            .volume(&config.display().to_string(), "/etc/refit/refit.toml:ro")
            .without_waiting()
    }

    /// The same in the group of the socket, as `--group-add` has it.
    fn spec(&self, name: &str, arguments: &[&str]) -> anyhow::Result<ContainerSpec> {
        let group = fs::metadata(&self.socket)?.gid().to_string();
        let spec = self.without_group(name, arguments);
        Ok(spec.host(|host| host.group_add = Some(vec![group])))
    }

    /// Whatever can be taken away is taken away; the state is a volume.
    fn locked(&self, name: &str, arguments: &[&str], state: &str) -> anyhow::Result<ContainerSpec> {
        let spec = self.spec(name, arguments)?;
        Ok(spec.volume(state, "/var/lib/refit").host(|host| {
            host.readonly_rootfs = Some(true);
            host.cap_drop = Some(vec!["ALL".into()]);
            host.security_opt = Some(vec!["no-new-privileges:true".into()]);
        }))
    }

    /// Its exit status and all that it has printed.
    async fn run(&self, spec: ContainerSpec) -> anyhow::Result<(i64, String)> {
        let container = self.w.create(spec).await?;
        let status = self.w.run_to_its_end(&container.id).await?;
        Ok((status, self.w.logs(&container.id).await?))
    }
}

/// The workspace of a runtime on v1, and v2 in the registry.
async fn behind(
    w: &World,
    registry: &Registry,
    runtime: &str,
) -> anyhow::Result<(Running, Published)> {
    let v1 = w.publish(registry, runtime, ImageSpec::new("v1")).await?;
    let container = w.run(ContainerSpec::new(runtime, &v1.reference)).await?;
    let v2 = w.publish(registry, runtime, ImageSpec::new("v2")).await?;
    Ok((container, v2))
}

async fn replaced(w: &World, old: &Running, new: &Published) -> anyhow::Result<()> {
    let now = w.inspect(&old.name).await?;
    assert_ne!(
        now.id.as_deref(),
        Some(old.id.as_str()),
        "the very same container"
    );
    assert_eq!(now.image.as_deref(), Some(new.id.as_str()));
    w.until_listening(&old.name).await
}

async fn until<F>(what: &str, mut holds: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let looking = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    let looked = tokio::time::timeout(Duration::from_secs(90), looking).await;
    looked.with_context(|| format!("cannot see {what}"))?
}

#[test]
fn the_programs_need_nothing_of_the_machine() -> anyhow::Result<()> {
    for (program, most) in [
        (program()?, PROGRAM_BYTES_MAX),
        (runtime()?, RUNTIME_BYTES_MAX),
    ] {
        let bytes = fs::metadata(&program)?.len();
        let name = program.file_name().unwrap_or_default().display();
        progress(&format!("`{name}` is {:.1} MB", bytes as f64 / 1e6));
        is_at_most(most, bytes, "bytes")?;
        // Its status differs between a static program and a static one that can be moved; its words do not, much.
        let told = Command::new("ldd").arg(&program).output()?;
        let told = [told.stdout, told.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        ensure!(
            told.contains("statically linked") || told.contains("not a dynamic executable"),
            "it needs libraries: {told}"
        );
    }
    Ok(())
}

/// Without an engine, so that only its own work is in it.
#[tokio::test]
async fn a_daemon_is_there_at_once_and_takes_little() -> anyhow::Result<()> {
    const STARTS: usize = 5;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("refit");
    fs::copy(self::program()?, &program)?;
    at_rest(&program)?;
    let refit = alone(&program, folder.path())?;
    // The first one compiles its policy, and the others find it.
    let _ = idle(&refit).await?;
    let (mut ready, mut resident) = (Duration::MAX, 0);
    for _ in 0..STARTS {
        let found = idle(&refit).await?;
        // The least: what else the machine does only adds to it.
        ready = ready.min(found.0);
        resident = resident.max(found.1);
    }
    progress(&format!(
        "a daemon answers after {} ms and has {:.1} MiB resident",
        ready.as_millis(),
        resident as f64 / 1024.0 / 1024.0,
    ));
    is_at_most(READY_MS_MAX, u64::try_from(ready.as_millis())?, "ms")?;
    is_at_most(RESIDENT_BYTES_MAX, resident, "bytes resident")
}

#[tokio::test]
async fn without_a_compiler_it_runs_what_another_one_compiled() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let (refit, runtime) = (
        alone(&program()?, state.path())?,
        alone(&runtime()?, state.path())?.env("ADMIN_TOKEN", TOKEN),
    );
    runtime
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2)
        .says("this build of Refit has no compiler")
        .says("`refit doctor`");
    // As it advises. There is no engine, and doctor says so.
    refit.run(&["doctor"]).await?.expect(1);
    let daemon = runtime.serve().await?;

    // What compiles is not offered.
    runtime
        .run(&["policy", "check", "built-in"])
        .await?
        .expect(2)
        .says("unrecognized subcommand 'check'");
    let help = runtime.run(&["policy", "--help"]).await?.expect(0);
    assert!(
        help.stdout.contains("This build has no compiler"),
        "{}",
        help.stdout
    );

    // The built-in policy with a custom section: another component, which decides the same.
    let next = [DEFAULT_POLICY, &[0, 2, 1, b'n']].concat();
    let swap = async || {
        let kind = ("content-type", "application/wasm");
        let path = "/v1/policy?origin=next.wasm";
        daemon.send("PUT", path, &[kind], next.clone()).await
    };
    let refused = swap().await?;
    let problem = refused.json()?;
    assert_eq!(
        (refused.status, &problem["stage"]),
        (422, &json!("compile")),
        "{problem}"
    );
    let refit = refit.file("next.wasm", &next)?;
    refit
        .run(&["policy", "check", "next.wasm"])
        .await?
        .expect(0);
    let taken = swap().await?;
    assert_eq!(taken.status, 200, "{}", taken.text);
    daemon.terminate()?;
    daemon.ended().await?.expect(0);
    Ok(())
}

/// A program of what is handed out, where there is no engine.
fn alone(program: &Path, state: &Path) -> anyhow::Result<Refit> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("no UTF-8");
    Ok(Refit::new(&text(program)?, "unix:///nowhere/docker.sock")?.set("state_dir", text(state)?))
}

/// Has the kernel read it from the disk again. What was just written is in its memory in pieces of 2 MiB, each of which counts as
/// resident for whoever touches a byte of it.
fn at_rest(program: &Path) -> anyhow::Result<()> {
    use rustix::fs::{Advice, fadvise};
    let file = fs::File::open(program)?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// How long a daemon took to its first answer, and what it had resident then, in bytes.
async fn idle(refit: &Refit) -> anyhow::Result<(Duration, u64)> {
    let began = Instant::now();
    let daemon = refit.serve().await?;
    let answer = daemon.request("GET", "/healthz").await?;
    let ready = began.elapsed();
    ensure!(answer.status == 200, "status {}", answer.status);
    let resident = daemon.resident_bytes()?;
    daemon.kill().await?;
    Ok((ready, resident))
}

#[test]
fn the_checksums_are_those_of_what_is_there() -> anyhow::Result<()> {
    let folder = dist()?;
    let checked = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet", "SHA256SUMS"])
        .current_dir(&folder)
        .output()?;
    let told = [checked.stdout, checked.stderr].concat();
    ensure!(
        checked.status.success(),
        "sha256sum says {}",
        String::from_utf8_lossy(&told)
    );
    let listed = fs::read_to_string(folder.join("SHA256SUMS"))?;
    for name in [
        "refit",
        "refit.bash",
        "_refit",
        "refit.fish",
        "refit-refresh.1",
        "refit.schema.json",
        "refit.service",
        "compose.yaml",
        "ca-certificates.crt",
        &sbom_name("refit"),
        &sbom_name("refit-runtime"),
    ] {
        ensure!(
            listed
                .lines()
                .any(|line| line.ends_with(&format!("/{name}"))),
            "`{name}` is not there:\n{listed}"
        );
    }
    Ok(())
}

fn sbom_name(program: &str) -> String {
    format!("{program}-linux-{}.cdx.json", architecture())
}

fn sbom_path(program: &str) -> anyhow::Result<PathBuf> {
    Ok(dist()?.join(sbom_name(program)))
}

/// `tokio@1.54.1`, for each component of a program's SBOM.
fn sbom_components(program: &str) -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(sbom_path(program)?)?;
    let sbom: Value = serde_json::from_str(&text)?;
    let components = sbom["components"].as_array().context("no components")?;
    let text = |component: &Value, key: &str| component[key].as_str().map(str::to_owned);
    components
        .iter()
        .map(|it| {
            let (name, version) = (text(it, "name"), text(it, "version"));
            let (name, version) = name.zip(version).context("no name and version")?;
            Ok(format!("{name}@{version}"))
        })
        .collect()
}

#[tokio::test]
async fn sboms_are_valid_by_the_schema() -> anyhow::Result<()> {
    const CHECK_TIMEOUT: Duration = Duration::from_secs(120);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sbom");
    let programs = python::environment(&folder.join("requirements.txt")).await?;
    let check = |sbom: PathBuf| {
        let mut check = tokio::process::Command::new(programs.join("python"));
        check.arg(folder.join("check.py")).arg(sbom);
        async move { python::output_within(&mut check, CHECK_TIMEOUT).await }
    };
    for program in ["refit", "refit-runtime"] {
        let told = check(sbom_path(program)?).await?;
        ensure!(told.contains("1 SBOMs are valid"), "{told}");
    }
    let wrong = tempfile::NamedTempFile::new()?;
    let text = fs::read_to_string(sbom_path("refit")?)?;
    fs::write(wrong.path(), text.replace("\"SHA-256\"", "\"SHA-255\""))?;
    let error = check(wrong.path().to_owned()).await;
    ensure!(error.is_err(), "the checker finds nothing: {error:?}");
    Ok(())
}

#[test]
fn sbom_lists_exactly_what_the_program_contains() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let lock: toml::Table = fs::read_to_string(root.join("Cargo.lock"))?.parse()?;
    let packages = lock["package"].as_array().context("no packages")?;
    let locked: BTreeSet<String> = packages
        .iter()
        .filter_map(|it| {
            Some(format!(
                "{}@{}",
                it["name"].as_str()?,
                it["version"].as_str()?
            ))
        })
        .collect();
    // A panic names the file that it is in, so the program itself says of some crates that they are in it.
    let path = Regex::new(
        r"(?-u)registry/src/[^/\x00]+/([A-Za-z0-9_-]+)-([0-9]+\.[0-9]+\.[0-9]+[A-Za-z0-9.+-]*)/",
    )?;
    for (name, program) in [("refit", program()?), ("refit-runtime", runtime()?)] {
        let components = sbom_components(name)?;
        let unknown: Vec<_> = components.difference(&locked).collect();
        ensure!(unknown.is_empty(), "{name}: not in Cargo.lock: {unknown:?}");
        for needed in ["wasmtime", "tokio", "libsqlite3-sys", "wit-bindgen"] {
            let found = components
                .iter()
                .any(|it| it.starts_with(&format!("{needed}@")));
            ensure!(found, "{name}: no {needed}: {components:?}");
        }
        let bytes = fs::read(&program)?;
        let mut seen = BTreeSet::new();
        for found in path.captures_iter(&bytes) {
            let [name, version] = [&found[1], &found[2]].map(String::from_utf8_lossy);
            seen.insert(format!("{name}@{version}"));
        }
        ensure!(seen.len() > 30, "{name} names only {seen:?}");
        let missing: Vec<_> = seen.difference(&components).collect();
        ensure!(missing.is_empty(), "{name}: not in the SBOM: {missing:?}");
        // Of tests, of macros, and of a feature that is off.
        let has = |part: &str| {
            components
                .iter()
                .any(|it| it.starts_with(&format!("{part}@")))
        };
        for part in [
            "criterion",
            "proptest",
            "bcrypt",
            "tempfile",
            "syn",
            "serde_derive",
        ] {
            ensure!(!has(part), "{name} has no {part}");
        }
        assert_eq!(has("cranelift-codegen"), name == "refit", "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_image_is_small_and_says_what_it_is() -> anyhow::Result<()> {
    with_world("small", |w| async move {
        let image = built(&w).await?;
        let inspected = w.docker().inspect_image(&image).await?;
        let config = inspected.config.context("an image has a configuration")?;
        assert_eq!(config.user.as_deref(), Some(USER));
        assert_eq!(config.entrypoint, Some(vec!["/refit".to_owned()]));
        let labels = config.labels.unwrap_or_default();
        let title = labels.get("org.opencontainers.image.title");
        assert_eq!(title.map(String::as_str), Some("refit"));
        // What a registry has of it is what is pulled: layers, compressed.
        let registry = registry::open().await?;
        let repository = format!("{}/refit", w.prefix());
        w.push_as(&image, &format!("{}/{repository}:latest", registry.host()))
            .await?;
        let address: SocketAddr = registry.host().parse()?;
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let path = format!("/v2/{repository}/manifests/latest");
        let answer = http::send(
            address,
            "GET",
            &path,
            None,
            &[("Accept", kind)],
            Default::default(),
        )
        .await?;
        let manifest = answer.json()?;
        let layers = manifest["layers"].as_array().context("layers")?;
        let bytes: u64 = layers.iter().filter_map(|it| it["size"].as_u64()).sum();
        progress(&format!(
            "the image is {:.1} MB in a registry, in {} layers",
            bytes as f64 / 1e6,
            layers.len()
        ));
        ensure!(bytes > 1 << 20, "{manifest:#}");
        is_at_most(IMAGE_BYTES_MAX, bytes, "bytes")
    })
    .await
}

#[tokio::test]
async fn a_container_of_it_refreshes_others_as_nobody() -> anyhow::Result<()> {
    with_world("nobody", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let handed = Handed::new(&w, registry, &["hermes"]).await?;

        let spec = handed.without_group("alone", &["refresh"]);
        let (status, told) = handed.run(spec).await?;
        assert_eq!(status, 2, "{told}");
        assert!(told.contains("Permission denied"), "{told}");
        assert_eq!(w.inspect(&hermes.name).await?.id, Some(hermes.id.clone()));

        let spec = handed.spec("grouped", &["refresh"])?;
        let (status, told) = handed.run(spec).await?;
        assert_eq!(status, 0, "{told}");
        replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn a_container_of_it_serves_with_nothing_that_it_does_not_need() -> anyhow::Result<()> {
    with_world("locked", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let handed = Handed::new(&w, registry, &["hermes"]).await?;
        let state = w.volume("state").await?;

        // Beyond loopback only with a token, in an image as well.
        let (status, told) = handed
            .run(
                handed
                    .locked("open", &["serve"], &state)?
                    .env("REFIT_SERVE__ALLOW_NO_TOKEN", "true"),
            )
            .await?;
        assert_eq!(status, 2, "{told}");
        assert!(told.contains("without an admin token"), "{told}");

        let spec = handed.locked("daemon", &["serve"], &state)?;
        let spec = spec
            .env("ADMIN_TOKEN", TOKEN)
            // As in the image, but sooner: what is left out here is the image's.
            .healthcheck(HealthConfig {
                interval: Some(i64::try_from(Duration::from_secs(1).as_nanos())?),
                ..HealthConfig::default()
            });
        let daemon = w.run(spec).await?;
        until("the daemon become healthy", || async {
            let state = w.inspect(&daemon.id).await?.state.context("a state")?;
            ensure!(
                state.running == Some(true),
                "it ended: {}",
                w.logs(&daemon.id).await?
            );
            let health = state.health.and_then(|health| health.status);
            Ok(health == Some(HealthStatusEnum::HEALTHY))
        })
        .await?;
        let address = SocketAddr::new(w.address(&daemon.id).await?, PORT);
        let refused = http::request(address, "GET", "/v1/refreshes", None).await?;
        assert_eq!(refused.status, 401);
        let path = "/admin/workspace-images/refresh";
        let answer = http::request(address, "POST", path, Some(TOKEN)).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.json()?["recreated"], json!([hermes.name]));
        replaced(&w, &hermes, &v2).await?;
        let written = http::request(address, "GET", "/v1/refreshes", Some(TOKEN)).await?;
        assert!(written.text.contains("\"done\""), "{}", written.text);
        w.stop(&daemon.id).await?;
        assert_eq!(
            w.until_ended(&daemon.id).await?,
            0,
            "{}",
            w.logs(&daemon.id).await?
        );

        // The next one finds what this one left: a volume that is written by nobody else.
        let (status, told) = handed
            .run(handed.locked("later", &["history", "--json"], &state)?)
            .await?;
        assert_eq!(status, 0, "{told}");
        assert!(told.contains("\"api\""), "{told}");
        Ok(())
    })
    .await
}

/// Each policy of the self-test is compiled in a process of its own, which is the program again, and runs under limits of memory
/// and time. There is no libc, no `/tmp`, and nothing that may be written.
#[tokio::test]
async fn policies_are_compiled_and_held_to_their_limits_there() -> anyhow::Result<()> {
    with_world("selftest", |w| async move {
        let registry = registry::open().await?;
        let handed = Handed::new(&w, registry, &["hermes"]).await?;
        let state = w.volume("state").await?;
        let spec = handed.locked("selftest", &["selftest", "--json"], &state)?;
        let (status, told) = handed.run(spec).await?;
        assert_eq!(status, 0, "{told}");
        assert!(
            told.contains("\"guest\"") || told.contains("\"name\""),
            "{told}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_container_that_refit_runs_in_is_left_alone() -> anyhow::Result<()> {
    with_world("itself", |w| async move {
        let registry = registry::open().await?;
        let mut handed = Handed::new(&w, registry, &["refit", "hermes"]).await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        // Of all that a policy looks for: its name, its image, and a newer one in the registry.
        let own = w.reference(registry, "refit");
        w.push_as(&handed.image, &own).await?;
        handed.image = own;
        let name = w.name("refit");
        let container = w
            .create(handed.spec(&name, &["refresh", "--json"])?)
            .await?;
        w.publish(registry, "refit", ImageSpec::new("v2")).await?;
        let status = w.run_to_its_end(&container.id).await?;
        let told = w.logs(&container.id).await?;
        let report = told.find('{').map(|at| &told[at..]).unwrap_or_default();
        let report: Value = serde_json::Deserializer::from_str(report)
            .into_iter()
            .next()
            .with_context(|| format!("no report in {told}"))??;
        let about: HashMap<&str, &Value> = report["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| Some((it["name"].as_str()?, it)))
            .collect();
        let itself = about.get(name.as_str()).context("it is in the report")?;
        assert!(
            itself.to_string().contains("Refit's own container"),
            "{itself:#}"
        );
        assert_eq!(status, 1, "{told}");
        assert_eq!(w.inspect(&name).await?.id, Some(container.id));
        replaced(&w, &hermes, &v2).await
    })
    .await
}

/// A stranger to the image: what it has in it is what the Dockerfile names, and what the engine puts there.
#[tokio::test]
async fn there_is_nothing_else_in_it() -> anyhow::Result<()> {
    with_world("content", |w| async move {
        let image = built(&w).await?;
        let container = w
            .create(ContainerSpec::named(
                &format!("{}-content", w.prefix()),
                &image,
            ))
            .await?;
        let archive = {
            use futures_util::TryStreamExt as _;
            let chunks = w.docker().export_container(&container.id);
            chunks.try_fold(Vec::new(), |mut all, chunk| async move {
                all.extend_from_slice(&chunk);
                Ok(all)
            })
        };
        let archive = archive.await?;
        let mut files = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries()? {
            let entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let of_engine = ["dev/", "proc/", "sys/", ".dockerenv"]
                .iter()
                .any(|it| path.starts_with(it));
            let of_network = ["etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"];
            if entry.header().entry_type().is_dir() || of_engine {
                continue;
            }
            if !of_network.contains(&path.as_str()) {
                files.push(path);
            }
        }
        files.sort();
        assert_eq!(files, ["etc/ssl/certs/ca-certificates.crt", "refit"]);
        assert!(Path::new("/").join(&files[0]).is_file());
        Ok(())
    })
    .await
}
