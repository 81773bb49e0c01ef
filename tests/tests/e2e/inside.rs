//! Refit in a container, and before an engine that it reaches through one: it leaves alone what it depends on.
//!
//! Each test has a neighbor that is behind too, which is refreshed in the same run: what Refit depends on is left out, and nothing
//! else. The program and its libraries are the machine's, mounted into the container.

use std::path::PathBuf;

use anyhow::Context as _;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum};
use refit_tests::registry::{self, Registry};
use refit_tests::world::{Published, Running};
use refit_tests::{ContainerSpec, ImageSpec, Refit, World, with_world};
use serde_json::Value;
use tempfile::TempDir;

use super::{PROGRAM, container, refit, replaced};

/// What the program needs of the machine.
const LIBRARIES: [&str; 3] = ["/lib", "/lib64", "/usr/lib"];
/// The images of these workspaces have a newer version in the registry.
const RUNTIMES: [&str; 3] = ["self", "other", "neighbor"];
/// Files that the engine writes for each container.
const ENGINE_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
const ENGINE: &str = "unix:///engine.sock";

/// The images of a test, and what a Refit in a container needs.
struct Site {
    w: World,
    registry: &'static Registry,
    old: Vec<Published>,
    neighbor: Running,
    config: TempDir,
}

impl Site {
    async fn new(w: &World) -> anyhow::Result<Self> {
        let registry = registry::open().await?;
        let mut old = Vec::new();
        for runtime in RUNTIMES {
            old.push(w.publish(registry, runtime, ImageSpec::new("v1")).await?);
        }
        let neighbor = w
            .run(ContainerSpec::new("neighbor", &old[2].reference))
            .await?;
        let config = tempfile::Builder::new().prefix("refit-inside-").tempdir()?;
        Ok(Self {
            w: w.clone(),
            registry,
            old,
            neighbor,
            config,
        })
    }

    fn refit(&self) -> anyhow::Result<Refit> {
        refit(&self.w, self.registry, &RUNTIMES)
    }

    /// From now on all of them are behind.
    async fn publish(&self) -> anyhow::Result<Published> {
        let mut newest = None;
        for runtime in RUNTIMES {
            let spec = ImageSpec::new("v2");
            newest = Some(self.w.publish(self.registry, runtime, spec).await?);
        }
        newest.context("there are runtimes")
    }

    /// `other`, whose program does nothing but listen.
    fn other(&self) -> ContainerSpec {
        ContainerSpec::new("other", &self.old[1].reference)
    }

    fn socket(&self) -> anyhow::Result<String> {
        let socket = self.w.docker_host().strip_prefix("unix://");
        Ok(socket.context("the engine has no socket here")?.to_owned())
    }

    /// `other`, as a proxy: it forwards `from`, a port or a path, to the engine.
    fn proxy(&self, from: &str) -> anyhow::Result<ContainerSpec> {
        let proxy = self.other().cmd(&["forward", from, "/engine.sock"]);
        Ok(proxy.volume(&self.socket()?, "/engine.sock"))
    }

    /// `self`, in which `refit refresh` runs and reaches the engine at `docker_host`.
    fn inside(&self, docker_host: &str) -> anyhow::Result<ContainerSpec> {
        let refit = self.refit()?;
        refit.write_config()?;
        let config = self.config.path().join("refit.toml");
        std::fs::copy(refit.home().join("refit.toml"), &config)?;
        let program = PathBuf::from(PROGRAM).canonicalize()?;
        let mut spec = ContainerSpec::new("self", &self.old[0].reference)
            .volume(&program.display().to_string(), "/refit:ro")
            .volume(&config.display().to_string(), "/refit.toml:ro")
            .volume(&self.socket()?, "/engine.sock")
            .env("DOCKER_HOST", docker_host)
            .env("HOME", "/data")
            .env("XDG_STATE_HOME", "/data")
            .without_waiting()
            .body(|body| {
                body.entrypoint = Some(vec!["/refit".into()]);
                body.cmd = Some(
                    ["refresh", "--json", "--config", "/refit.toml"]
                        .map(str::to_owned)
                        .into(),
                );
            });
        for folder in LIBRARIES {
            if std::path::Path::new(folder).exists() {
                spec = spec.volume(folder, &format!("{folder}:ro"));
            }
        }
        Ok(spec)
    }

    /// Runs it to its end, and returns the report. It must be there as it was, and the neighbor replaced.
    async fn refresh_inside(&self, spec: ContainerSpec) -> anyhow::Result<Value> {
        let container = self.w.create(spec).await?;
        let newest = self.publish().await?;
        self.w.run_to_its_end(&container.id).await?;
        let logs = self.w.logs(&container.id).await?;
        let start = logs
            .find("{\n")
            .with_context(|| format!("no report in {logs}"))?;
        let mut documents = serde_json::Deserializer::from_str(&logs[start..]).into_iter::<Value>();
        let report = documents.next().context("no report")??;
        self.judge(&report, &container, "Refit's own container", &newest)
            .await?;
        Ok(report)
    }

    /// Runs it on the machine, through the proxy at `docker_host`.
    async fn refresh_through(
        &self,
        docker_host: &str,
        proxy: &Running,
        reason: &str,
    ) -> anyhow::Result<Value> {
        let newest = self.publish().await?;
        let refit = self.refit()?.env("DOCKER_HOST", docker_host);
        let report = refit.run(&["refresh", "--json"]).await?.expect(1).json();
        self.judge(&report, proxy, reason, &newest).await?;
        Ok(report)
    }

    async fn judge(
        &self,
        report: &Value,
        kept: &Running,
        reason: &str,
        newest: &Published,
    ) -> anyhow::Result<()> {
        refused(report, &kept.name, reason);
        assert_eq!(
            self.w.inspect(&kept.name).await?.id.as_deref(),
            Some(kept.id.as_str())
        );
        replaced(&self.w, &self.neighbor, newest).await
    }
}

#[track_caller]
fn refused(report: &Value, name: &str, reason: &str) {
    let about = container(report, name);
    let told = about.to_string();
    assert_eq!(about["recreation"]["outcome"], "refused", "{about:#}");
    assert!(told.contains(reason), "`{reason}` is not in {about:#}");
}

async fn recognizes_itself(
    title: &str,
    change: impl FnOnce(&mut HostConfig) + Send + 'static,
) -> anyhow::Result<()> {
    with_world(title, |w| async move {
        let site = Site::new(&w).await?;
        site.refresh_inside(site.inside(ENGINE)?.host(change))
            .await?;
        Ok(())
    })
    .await
}

fn mount_files(host: &mut HostConfig, files: &[&str]) {
    let binds = host.binds.get_or_insert_default();
    binds.extend(files.iter().map(|file| format!("{file}:{file}:ro")));
}

#[tokio::test]
async fn own_container_is_recognized() -> anyhow::Result<()> {
    recognizes_itself("own container", |_| {}).await
}

#[tokio::test]
async fn own_container_is_recognized_with_mounted_hostname() -> anyhow::Result<()> {
    recognizes_itself("mounted hostname", |host| {
        mount_files(host, &["/etc/hostname"])
    })
    .await
}

#[tokio::test]
async fn own_container_is_recognized_in_host_namespaces() -> anyhow::Result<()> {
    recognizes_itself("host namespaces", |host| {
        host.network_mode = Some("host".into());
        host.uts_mode = Some("host".into());
        host.pid_mode = Some("host".into());
    })
    .await
}

/// Nothing but its file system tells which one it is.
#[tokio::test]
async fn own_container_is_recognized_by_file_system() -> anyhow::Result<()> {
    for mode in [
        HostConfigCgroupnsModeEnum::PRIVATE,
        HostConfigCgroupnsModeEnum::HOST,
    ] {
        recognizes_itself("file system", move |host| {
            host.network_mode = Some("host".into());
            host.uts_mode = Some("host".into());
            host.cgroupns_mode = Some(mode);
            mount_files(host, &ENGINE_FILES);
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn network_provider_of_own_container_is_refused() -> anyhow::Result<()> {
    with_world("network of another", |w| async move {
        let site = Site::new(&w).await?;
        let other = site.w.run(site.other()).await?;
        let mode = format!("container:{}", other.id);
        let spec = site.inside(ENGINE)?.host(|host| {
            host.network_mode = Some(mode);
            host.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::PRIVATE);
        });
        let report = site.refresh_inside(spec).await?;
        refused(
            &report,
            &other.name,
            "Refit's own container uses its network",
        );
        super::untouched(&w, &other).await
    })
    .await
}

#[tokio::test]
async fn process_and_memory_providers_of_own_container_are_refused() -> anyhow::Result<()> {
    for (what, reason) in [
        ("pid", "uses its process namespace"),
        ("ipc", "uses its shared memory"),
    ] {
        with_world(what, |w| async move {
            let site = Site::new(&w).await?;
            let other = site
                .other()
                .host(|host| host.ipc_mode = Some("shareable".into()));
            let other = site.w.run(other).await?;
            let mode = Some(format!("container:{}", other.id));
            let spec = site.inside(ENGINE)?.host(|host| match what {
                "pid" => host.pid_mode = mode,
                _ => host.ipc_mode = mode,
            });
            let report = site.refresh_inside(spec).await?;
            refused(&report, &other.name, reason);
            super::untouched(&w, &other).await
        })
        .await?;
    }
    Ok(())
}

/// On the machine itself nothing of this applies, whatever a container's host name is.
#[tokio::test]
async fn host_process_depends_on_no_container() -> anyhow::Result<()> {
    with_world("on the machine", |w| async move {
        let site = Site::new(&w).await?;
        let spec = site.other().host(|host| {
            host.uts_mode = Some("host".into());
            host.network_mode = Some("host".into());
            mount_files(host, &ENGINE_FILES);
            host.binds
                .get_or_insert_default()
                .push("/var/run:/var/run".into());
        });
        // The port of the machine may be taken.
        let other = site
            .w
            .run(spec.env("PORT", "18473").without_waiting())
            .await?;
        site.publish().await?;
        let report = site
            .refit()?
            .run(&["refresh", "--json"])
            .await?
            .expect(0)
            .json();
        assert_eq!(
            container(&report, &other.name)["recreation"]["outcome"],
            "recreated"
        );
        Ok(())
    })
    .await
}

const THROUGH: &str = "Refit reaches the engine";

#[tokio::test]
async fn proxy_at_published_port_is_refused() -> anyhow::Result<()> {
    with_world("published proxy", |w| async move {
        let site = Site::new(&w).await?;
        let proxy = site.w.run(site.proxy("2375")?.publish(2375)).await?;
        let ports = w
            .inspect(&proxy.id)
            .await?
            .network_settings
            .and_then(|it| it.ports);
        let bindings = ports.and_then(|mut ports| ports.remove("2375/tcp").flatten());
        let port = bindings.and_then(|bindings| bindings[0].host_port.clone());
        let url = format!("tcp://localhost:{}", port.context("it is published")?);
        site.refresh_through(&url, &proxy, THROUGH).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn proxy_at_its_own_address_is_refused() -> anyhow::Result<()> {
    with_world("address of a proxy", |w| async move {
        let site = Site::new(&w).await?;
        let proxy = site.w.run(site.proxy("2375")?).await?;
        let url = format!("tcp://{}:2375", w.address(&proxy.id).await?);
        site.refresh_through(&url, &proxy, THROUGH).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn proxy_in_host_network_is_refused() -> anyhow::Result<()> {
    with_world("proxy in the host network", |w| async move {
        let site = Site::new(&w).await?;
        let proxy = site.proxy("23751")?.env("PORT", "18474").without_waiting();
        let proxy = proxy.host(|host| host.network_mode = Some("host".into()));
        let proxy = site.w.run(proxy).await?;
        w.until_stamped(&proxy.id, "listen").await?;
        site.refresh_through(
            "tcp://127.0.0.1:23751",
            &proxy,
            "uses the machine's network",
        )
        .await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn proxy_at_socket_is_refused() -> anyhow::Result<()> {
    with_world("socket of a proxy", |w| async move {
        let site = Site::new(&w).await?;
        let folder = site.config.path().display().to_string();
        let proxy = site.proxy("/out/proxy.sock")?.volume(&folder, "/out");
        let proxy = site.w.run(proxy).await?;
        let url = format!("unix://{folder}/proxy.sock");
        site.refresh_through(&url, &proxy, "a program in it listens")
            .await?;
        Ok(())
    })
    .await
}

/// It is named and in a network of theirs; the network's provider would take it along.
#[tokio::test]
async fn proxy_by_name_is_refused_inside() -> anyhow::Result<()> {
    with_world("name of a proxy", |w| async move {
        let site = Site::new(&w).await?;
        let network = w.network("net").await?;
        let proxy = site.proxy("2375")?.network(&network, &["engine-proxy"]);
        let proxy = site.w.run(proxy).await?;
        let spec = site
            .inside("tcp://engine-proxy:2375")?
            .network(&network, &[]);
        let report = site.refresh_inside(spec).await?;
        refused(&report, &proxy.name, THROUGH);
        super::untouched(&w, &proxy).await
    })
    .await
}

#[tokio::test]
async fn proxy_at_shared_volume_is_refused_inside() -> anyhow::Result<()> {
    with_world("volume of a proxy", |w| async move {
        let site = Site::new(&w).await?;
        let volume = w.volume("socket").await?;
        let proxy = site.proxy("/out/proxy.sock")?.volume(&volume, "/out");
        let proxy = site.w.run(proxy).await?;
        let spec = site.inside("unix:///in/proxy.sock")?.volume(&volume, "/in");
        let report = site.refresh_inside(spec).await?;
        refused(&report, &proxy.name, THROUGH);
        super::untouched(&w, &proxy).await
    })
    .await
}

/// As a sidecar: it listens in the network of Refit's own container.
#[tokio::test]
async fn provider_of_the_proxy_network_is_refused() -> anyhow::Result<()> {
    with_world("provider of a proxy", |w| async move {
        let site = Site::new(&w).await?;
        let other = site.w.run(site.other()).await?;
        let mode = format!("container:{}", other.id);
        // The neighbor's image: it is behind as well, and refused along with its provider.
        let proxy = ContainerSpec::named(&w.name("proxy"), &site.old[1].reference)
            .cmd(&["forward", "2375", "/engine.sock"])
            .env("PORT", "8001")
            .volume(&site.socket()?, "/engine.sock")
            .without_waiting()
            .body(|body: &mut ContainerCreateBody| {
                body.host_config.get_or_insert_default().network_mode = Some(mode);
            });
        let proxy = site.w.run(proxy).await?;
        w.until_stamped(&proxy.id, "listen").await?;
        let url = format!("tcp://{}:2375", w.address(&other.id).await?);
        let report = site.refresh_through(&url, &other, THROUGH).await?;
        refused(&report, &proxy.name, THROUGH);
        super::untouched(&w, &proxy).await
    })
    .await
}

/// The proxy lives among the processes of another container, which has no address of the way.
#[tokio::test]
async fn container_that_the_proxy_depends_on_is_refused() -> anyhow::Result<()> {
    with_world("the proxy depends on it", |w| async move {
        let site = Site::new(&w).await?;
        let other = site.w.run(site.other()).await?;
        let mode = format!("container:{}", other.id);
        let proxy = ContainerSpec::named(&format!("{}-proxy", w.prefix()), &site.old[1].reference)
            .cmd(&["forward", "2375", "/engine.sock"])
            .volume(&site.socket()?, "/engine.sock")
            .host(|host| host.pid_mode = Some(mode));
        let proxy = site.w.run(proxy).await?;
        let url = format!("tcp://{}:2375", w.address(&proxy.id).await?);
        let reason = "shares its processes and cannot be recreated with it";
        site.refresh_through(&url, &other, reason).await?;
        super::untouched(&w, &proxy).await
    })
    .await
}
