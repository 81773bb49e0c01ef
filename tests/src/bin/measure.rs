//! What replacing many containers costs, beside the order of calls of other updaters. See `refit_tests::measure`.
//!
//! `measure REFIT [--containers 8,40] [--runs 3] [--orders floor,replace] [--json FILE]`, or, for numbers of containers where
//! nothing is to be done, `measure REFIT --scale 100,1000 [--json FILE]`. `cargo xtask bench engine` builds what it takes. The orders
//! take turns within each run, so that what else the machine does meets all of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use bollard::Docker;
use refit_tests::measure::fleet::Images;
use refit_tests::measure::order::{Given, Left, Order, warm_up};
use refit_tests::measure::scale;
use refit_tests::measure::table::{Sample, markdown, rows};
use refit_tests::registry::{Access, Registry};
use refit_tests::{Proxy, World, progress, with_world_for};
use serde::Serialize;

/// A hundred containers in six orders, three times, took less than two hours on a loaded machine.
const WHOLE: Duration = Duration::from_secs(4 * 60 * 60);
/// The kernel tells processor time in hundredths of a second, whatever it counts in itself.
const TICK_MS: u64 = 10;
/// Of bollard, for one answer.
const ANSWER_SECONDS: u64 = 300;

#[derive(Clone)]
struct Asked {
    refit: PathBuf,
    containers: Vec<usize>,
    runs: usize,
    orders: Vec<Order>,
    /// Instead of the orders.
    scale: Vec<usize>,
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut asked = asked(std::env::args().skip(1))?;
    // It is run in a folder of its own.
    asked.refit = asked
        .refit
        .canonicalize()
        .context("cannot find the program")?;
    with_world_for(WHOLE, "measure", |world| async move {
        measure(&world, asked).await
    })
    .await
}

fn asked(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Asked> {
    let usage = "measure REFIT [--containers 8,40] [--runs 3] [--orders floor,ask,nothing,original,watchtower,watchtower-rolling,replace-1,replace,overlap] [--scale 100,1000] [--json FILE]";
    let mut asked = Asked {
        refit: arguments.next().context(usage)?.into(),
        containers: vec![8, 40],
        runs: 3,
        orders: Order::ALL.to_vec(),
        scale: vec![],
        json: None,
    };
    while let Some(option) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("`{option}` takes a value: {usage}"))?;
        match option.as_str() {
            "--containers" => asked.containers = numbers(&value)?,
            "--scale" => {
                asked.scale = numbers(&value)?;
                asked.scale.sort_unstable();
            }
            "--runs" => asked.runs = value.parse().context("`--runs` takes a number")?,
            "--orders" => {
                let orders = value.split(',').map(|name| {
                    Order::named(name)
                        .with_context(|| format!("there is no order `{name}`: {usage}"))
                });
                asked.orders = orders.collect::<anyhow::Result<_>>()?;
            }
            "--json" => asked.json = Some(value.into()),
            _ => bail!("there is no option `{option}`: {usage}"),
        }
    }
    Ok(asked)
}

fn numbers(text: &str) -> anyhow::Result<Vec<usize>> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    numbers.with_context(|| format!("`{text}` is no numbers, separated by commas"))
}

async fn measure(world: &World, asked: Asked) -> anyhow::Result<()> {
    let registry = Registry::start(Access::Anybody).await?;
    let proxy = Proxy::before(world).await?;
    let socket = proxy.docker_host();
    let docker = Docker::connect_with_unix(&socket, ANSWER_SECONDS, bollard::API_DEFAULT_VERSION)?
        .negotiate_version()
        .await?;
    let images = Images::publish(world, &registry).await?;
    let state = tempfile::tempdir()?;
    let given = Given {
        world,
        images: &images,
        proxy: &proxy,
        docker: &docker,
        refit: &asked.refit,
        state: state.path(),
    };
    warm_up(&given).await?;
    if !asked.scale.is_empty() {
        let rows = scale::rows(&given, &asked.scale).await?;
        return tell(asked.json.as_deref(), &rows, &scale::markdown(&rows));
    }
    let mut samples = Vec::new();
    for &containers in &asked.containers {
        for run in 1..=asked.runs {
            for &order in &asked.orders {
                let sample = once(&given, &registry, order, containers).await?;
                progress(&format!(
                    "{containers} containers, run {run} of {}, {}: {} ms",
                    asked.runs,
                    order.name(),
                    sample.total_ms
                ));
                samples.push(sample);
            }
        }
    }
    let rows = rows(&samples);
    tell(asked.json.as_deref(), &rows, &markdown(&rows))
}

fn tell(json: Option<&Path>, rows: &impl Serialize, table: &str) -> anyhow::Result<()> {
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(rows)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    progress(table);
    Ok(())
}

async fn once(
    given: &Given<'_>,
    registry: &Registry,
    order: Order,
    containers: usize,
) -> anyhow::Result<Sample> {
    let fleet = given.images.start(order.shape(containers)).await?;
    let (calls, requests) = (given.proxy.asked().len(), registry.requests()?.len());
    let busy = busy_ms()?;
    let (began, began_at) = (Instant::now(), SystemTime::now());
    order.run(given, &fleet).await?;
    let total_ms = u64::try_from(began.elapsed().as_millis())?;
    let processor_ms = busy_ms()?.saturating_sub(busy);
    let (calls, requests) = (
        given.proxy.asked().len() - calls,
        registry.requests()?.len() - requests,
    );
    let gaps = match order.leaves() {
        Left::Gone | Left::Running => vec![],
        left @ (Left::Restarted | Left::Renewed) => {
            given.images.gaps(&fleet, left == Left::Renewed).await?
        }
    };
    given.images.clear().await?;
    let began_ms = u64::try_from(began_at.duration_since(UNIX_EPOCH)?.as_millis())?;
    let last = gaps.iter().map(|gap| gap.ended_ms).max();
    Ok(Sample {
        order,
        containers,
        total_ms,
        renewed_ms: last.map(|last| last.saturating_sub(began_ms)),
        gaps_ms: gaps.iter().map(|gap| gap.ms).collect(),
        engine_calls: calls,
        registry_requests: requests,
        processor_ms,
    })
}

/// Milliseconds since the machine started for which its processors were busy, all of them together, from `/proc/stat`.
fn busy_ms() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let all = text.lines().next().unwrap_or_default();
    let mut ticks = all.split_whitespace().skip(1).map(str::parse::<u64>);
    let mut busy = 0;
    // user nice system idle iowait irq softirq
    for counted in [true, true, true, false, false, true, true] {
        let ticks = ticks.next().context("/proc/stat has other columns")??;
        busy += if counted { ticks } else { 0 };
    }
    Ok(busy * TICK_MS)
}
