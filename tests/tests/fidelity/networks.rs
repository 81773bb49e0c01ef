//! Networks: each with its aliases and fixed addresses, and nothing that only the old container had.

use std::collections::BTreeSet;

use bollard::models::EndpointSettings;
use refit::engine::Engine as _;
use refit::model::container::Container;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};
use serde_json::{Value, json};

use crate::bench::{Bench, docker};
use crate::changes::changes;
use crate::fields;

/// Fields of an endpoint that nobody can ask for on this engine, and why.
const NOT_ASKED_FOR: &[(&str, &str)] = &[
    ("NetworkID", "the engine's"),
    ("EndpointID", "the engine's"),
    ("Gateway", "the network's"),
    ("IPAddress", "the engine's; a fixed one is in `IPAMConfig`"),
    ("IPPrefixLen", "the network's"),
    ("IPv6Gateway", "the network's"),
    (
        "GlobalIPv6Address",
        "the engine's; a fixed one is in `IPAMConfig`",
    ),
    ("GlobalIPv6PrefixLen", "the network's"),
    ("DNSNames", "the engine's, from API 1.44 on"),
    ("GwPriority", "from API 1.48 on, newer.rs"),
    (
        "MacAddress",
        "per endpoint from API 1.44 on; here it is the container's, config.rs",
    ),
];

/// What a container is called on a network, beside its name. Up to API 1.43 an engine says all of it as aliases; from then on
/// those are only what was asked for.
fn aliases(container: &Container, network: &str) -> BTreeSet<String> {
    let endpoint = &container.endpoints[network];
    let names = endpoint.get("DNSNames").and_then(Value::as_array);
    let aliases = names.or_else(|| endpoint.get("Aliases").and_then(Value::as_array));
    let aliases = aliases.into_iter().flatten().filter_map(Value::as_str);
    let others = aliases.filter(|alias| *alias != container.name);
    others.map(str::to_owned).collect()
}

/// Who is in a network, by id.
async fn present(w: &World, network: &str) -> anyhow::Result<Vec<String>> {
    let network = w.docker().inspect_network(network, None).await?;
    Ok(network.containers.unwrap_or_default().into_keys().collect())
}

/// 29-34
#[tokio::test]
async fn every_wish_of_an_endpoint_comes_back() -> anyhow::Result<()> {
    with_world("every wish of an endpoint", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (w.load(ImageSpec::new("v1")).await?, w.load(ImageSpec::new("v2")).await?);
        let (plain, fixed) = (w.network("plain").await?, w.network_with_subnet("fixed").await?);
        // Before `plain` in the alphabet, so that an order by name would choose the wrong first one.
        let linked = w.run(ContainerSpec::named(&format!("{}-linked", w.prefix()), &old).network(&plain, &["db"])).await?;
        let wishes = json!({
            "IPAMConfig": {"IPv4Address": format!("{}.77", fixed.start), "LinkLocalIPs": ["169.254.34.68"]},
            "Aliases": ["fixed-alias"],
            "DriverOpts": {"com.example.option": "x"},
        });
        let linking = json!({"Aliases": ["web", "second.alias"], "Links": [format!("{}:database", linked.name)]});
        fields::all_known::<EndpointSettings>(&[&wishes, &linking], NOT_ASKED_FOR);

        let name = w.name("a");
        let id = bench.create(&name, &old, json!({"Hostname": "box"}), json!({"NetworkMode": plain})).await?;
        let engine = docker(&w);
        // The endpoint that it was made with has no wishes yet.
        w.docker().disconnect_network(&plain, bollard::models::NetworkDisconnectRequest { container: id.as_str().to_owned(), force: Some(false) }).await?;
        engine.connect(&id, &plain, &crate::bench::object(linking)).await?;
        engine.connect(&id, &fixed.network, &crate::bench::object(wishes)).await?;
        engine.start(&id).await?;
        w.until_listening(&name).await?;
        let before = bench.inspect(&name).await?;

        bench.refreshed(&name, &new).await?;
        let after = bench.inspect(&name).await?;
        assert_eq!(changes(&before, &after), Vec::<String>::new());
        assert_eq!(after.network_mode(), plain);
        assert_eq!(aliases(&after, &plain), BTreeSet::from(["box", "web", "second.alias", after.id.short()].map(str::to_owned)));
        assert_eq!(after.endpoints[&fixed.network]["IPAddress"], format!("{}.77", fixed.start));
        assert_eq!(w.read_line_at(format!("{}.77:8000", fixed.start).parse()?).await?, "v2");
        assert_eq!(present(&w, &fixed.network).await?, [after.id.as_str()]);
        Ok(())
    })
    .await
}

/// 31: an address that the engine gave is given anew.
#[tokio::test]
async fn an_address_that_the_engine_gave_is_not_asked_for() -> anyhow::Result<()> {
    with_world("an address that the engine gave", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let subnet = w.network_with_subnet("net").await?;
        w.run(ContainerSpec::new("a", &old).network(&subnet.network, &["web"]))
            .await?;
        bench.refreshed(&w.name("a"), &new).await?;
        let after = bench.inspect(&w.name("a")).await?;
        let asked = after.endpoints[&subnet.network]
            .get("IPAMConfig")
            .cloned()
            .unwrap_or_default();
        assert!(asked.is_null() || asked == json!({}), "{asked}");
        assert!(
            after.config.get("MacAddress").is_none_or(|mac| mac == ""),
            "{:?}",
            after.config.get("MacAddress")
        );
        assert_eq!(w.read_line(&w.name("a")).await?, "v2");
        Ok(())
    })
    .await
}

/// 32
#[tokio::test]
async fn a_network_that_was_named_by_its_id_keeps_its_wishes() -> anyhow::Result<()> {
    with_world("a network that was named by its id", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let subnet = w.network_with_subnet("net").await?;
        let id = w
            .docker()
            .inspect_network(&subnet.network, None)
            .await?
            .id
            .unwrap();
        let address = format!("{}.78", subnet.start);
        w.run(ContainerSpec::new("a", &old).network_at(&id, &["web"], &address))
            .await?;
        let before = bench.inspect(&w.name("a")).await?;
        bench.refreshed(&w.name("a"), &new).await?;
        let after = bench.inspect(&w.name("a")).await?;
        assert_eq!(changes(&before, &after), Vec::<String>::new());
        assert_eq!(after.network_mode(), id);
        assert_eq!(
            w.read_line_at(format!("{address}:8000").parse()?).await?,
            "v2"
        );
        Ok(())
    })
    .await
}

/// 35
#[tokio::test]
async fn networks_that_take_no_wishes_get_none() -> anyhow::Result<()> {
    with_world("networks that take no wishes", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        for (number, mode) in ["default", "bridge", "host", "none"]
            .into_iter()
            .enumerate()
        {
            let name = w.name(&format!("m{number}"));
            let port = 30_000 + random_port() % 2_000;
            let config = json!({"Env": [format!("PORT={port}")]});
            let before = bench
                .run(&name, &old, config, json!({"NetworkMode": mode}))
                .await?;
            bench.refreshed(&name, &new).await?;
            let after = bench.inspect(&name).await?;
            assert_eq!(changes(&before, &after), Vec::<String>::new(), "{mode}");
        }
        Ok(())
    })
    .await
}

/// Any port; the machine's are shared with other tests.
pub(crate) fn random_port() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    let [first, second, ..] = RandomState::new().hash_one(0).to_ne_bytes();
    u16::from_ne_bytes([first, second])
}

/// Somebody took it out of the network that it was made with, into another one.
#[tokio::test]
async fn a_container_is_not_put_back_into_a_network_that_it_was_taken_out_of() -> anyhow::Result<()>
{
    with_world("a network that it was taken out of", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let (first, second) = (w.network("first").await?, w.network("second").await?);
        let a = w
            .run(
                ContainerSpec::new("a", &old)
                    .network(&first, &["web"])
                    .network(&second, &["api"]),
            )
            .await?;
        w.docker()
            .disconnect_network(
                &first,
                bollard::models::NetworkDisconnectRequest {
                    container: a.id,
                    force: Some(false),
                },
            )
            .await?;
        bench.refreshed(&w.name("a"), &new).await?;
        let after = bench.inspect(&w.name("a")).await?;
        assert_eq!(after.endpoints.keys().collect::<Vec<_>>(), [&second]);
        assert!(aliases(&after, &second).contains("api"));
        Ok(())
    })
    .await
}

/// 6
#[tokio::test]
async fn a_second_network_that_refuses_stops_nothing() -> anyhow::Result<()> {
    with_world("a second network that refuses", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let (first, second) = (w.network("first").await?, w.network("second").await?);
        let a = w
            .run(
                ContainerSpec::new("a", &old)
                    .network(&first, &[])
                    .network(&second, &[]),
            )
            .await?;
        let started = Bench::new(&w).started(&a.id).await?;
        let between = crate::engine_faults::Between::new(&w).refuses(|call| {
            call.starts_with("connect ")
                .then(|| crate::engine_faults::status(403))
        });
        let bench = Bench::new(&w).through(between);
        let error = bench.refused(&a.name, &new).await?;
        assert!(
            matches!(
                error,
                refit::recreate::RecreateError::Aborted {
                    step: refit::model::recreation::Step::Connect,
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(bench.started(&a.id).await?, started);
        bench.only(&[&a.name]).await
    })
    .await
}
