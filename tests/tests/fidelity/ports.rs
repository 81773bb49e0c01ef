//! Published ports: those that somebody may have written down are the same afterwards.

use refit_tests::{ContainerSpec, ImageSpec, with_world};
use serde_json::json;

use crate::bench::{Bench, told};
use crate::changes::published;

/// Engines choose from the ports that a system gives to anybody who wants any, and somebody may while nobody holds them.
const ATTEMPTS: usize = 3;

/// 44, 45
#[tokio::test]
async fn every_published_port_is_the_same_afterwards() -> anyhow::Result<()> {
    with_world("every published port", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (w.load(ImageSpec::new("v1")).await?, w.load(ImageSpec::new("v2")).await?);
        let free = free_port()?;
        let range = format!("{}-{}", free_port()?, 65_000);
        let exposed = json!({"8000/tcp": {}, "8001/tcp": {}, "8002/udp": {}, "8003/tcp": {}, "8004/tcp": {}});
        let mut bindings = json!({
            "8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": free.to_string()}, {"HostIp": "127.0.0.2", "HostPort": ""}],
            "8001/tcp": [{"HostIp": "", "HostPort": ""}],
            "8002/udp": [{"HostIp": "127.0.0.1", "HostPort": "0"}],
            "8003/tcp": [{"HostIp": "127.0.0.1", "HostPort": range}],
        });
        // Newer engines give the port that they chose for the first of two equal wishes to the second too, and cannot start that.
        if bench.api().await? < (1, 46) {
            bindings["8004/tcp"] = json!([{"HostIp": "127.0.0.1", "HostPort": ""}, {"HostIp": "127.0.0.1", "HostPort": ""}]);
        }
        let documents = [
            ("bound", json!({"PortBindings": bindings})),
            ("all", json!({"PublishAllPorts": true})),
            ("both", json!({"PublishAllPorts": true, "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}})),
        ];
        for (suffix, document) in documents {
            let name = w.name(suffix);
            bench.run(&name, &old, json!({ "ExposedPorts": exposed }), document).await?;
            let mut attempts = 0..ATTEMPTS;
            loop {
                let before = published(&bench.inspect(&name).await?);
                assert!(!before.is_empty());
                match bench.refresh(&name, &new).await? {
                    Ok(_) => {
                        assert_eq!(before, published(&bench.inspect(&name).await?), "{suffix}");
                        break;
                    }
                    // Then the old one is back, on other ports.
                    Err(error) if told(&error).contains("already in use") && attempts.next().is_some() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    })
    .await
}

/// 44
#[tokio::test]
async fn a_fixed_port_passes_from_the_old_to_the_new() -> anyhow::Result<()> {
    with_world("a fixed port", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let port = free_port()?;
        w.run(ContainerSpec::new("a", &old).publish_at(8000, port))
            .await?;
        bench.refreshed(&w.name("a"), &new).await?;
        w.until_listening(&w.name("a")).await?;
        assert_eq!(
            w.read_line_at(format!("127.0.0.1:{port}").parse()?).await?,
            "v2"
        );
        Ok(())
    })
    .await
}

/// Free a moment ago. Between 20,000 and 30,000, where neither engines nor systems choose from.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let port = 20_000 + crate::networks::random_port() % 10_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port was found")
}
