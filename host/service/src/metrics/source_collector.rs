//! Collects numbers from other parts of the daemon at each scrape, and encodes them.

use std::fmt;
use std::sync::OnceLock;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use refit_model::report::PolicyReport;

/// A function that returns a current value. A scrape waits for it, so it must answer from memory.
type Ask<T> = Box<dyn Fn() -> T + Send + Sync>;

/// The numbers that the parts of the daemon keep.
pub struct Sources {
    /// Running refreshes.
    pub under_way: Ask<usize>,
    /// Unfinished replacements.
    pub unfinished: Ask<usize>,
    /// The active policy.
    pub policy: Ask<PolicyReport>,
    /// `None` if no history is kept.
    pub history_writable: Ask<Option<bool>>,
    /// `None` before the first request to the engine.
    pub engine_up: Ask<Option<bool>>,
}

/// The numbers that the watcher keeps.
pub struct Watched {
    /// `None` before the first check.
    pub images: Ask<Option<ImageCounts>>,
    /// The registry, the status (0: no answer), and the number of requests since the start. Their source bounds the number of
    /// entries.
    pub registry_requests: Ask<Vec<(String, u16, u64)>>,
}

/// The number of watched images, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageCounts {
    /// The registry has a different image than the one that runs here.
    pub behind: usize,
    pub current: usize,
    /// The state could not be determined.
    pub unknown: usize,
}

#[derive(Default)]
pub(super) struct SourceCollector {
    sources: OnceLock<Sources>,
    watched: OnceLock<Watched>,
}

impl fmt::Debug for SourceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceCollector").finish_non_exhaustive()
    }
}

impl SourceCollector {
    pub(super) fn set_sources(&self, sources: Sources) {
        let _ = self.sources.set(sources);
    }

    pub(super) fn set_watched(&self, watched: Watched) {
        let _ = self.watched.set(watched);
    }
}

impl Collector for SourceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(sources) = self.sources.get() {
            encode_sources(sources, &mut encoder)?;
        }
        if let Some(watched) = self.watched.get() {
            encode_watched(watched, &mut encoder)?;
        }
        Ok(())
    }
}

fn encode_sources(sources: &Sources, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    encode_gauge(
        encoder,
        "refit_refreshes_under_way",
        "Refreshes that have begun and not ended",
        to_i64((sources.under_way)()),
    )?;
    encode_gauge(
        encoder,
        "refit_replacements_unfinished",
        "Replacements that were left half done, and that nobody is at work on: a person may be needed",
        to_i64((sources.unfinished)()),
    )?;
    let policy = (sources.policy)();
    encode_gauge(
        encoder,
        "refit_policy_generation",
        "The number of the active generation of the policy, which rises with each swap",
        i64::try_from(policy.generation).unwrap_or(i64::MAX),
    )?;
    let labels = [
        ("name", policy.name),
        ("version", policy.version),
        ("digest", policy.digest),
    ];
    let help = "The active policy";
    let info = encoder.encode_descriptor("refit_policy", help, None, MetricType::Info)?;
    Info::new(labels).encode(info)?;
    if let Some(writable) = (sources.history_writable)() {
        encode_gauge(
            encoder,
            "refit_history_writable",
            "Whether the last refresh could be written down (1) or not (0)",
            i64::from(writable),
        )?;
    }
    if let Some(up) = (sources.engine_up)() {
        encode_gauge(
            encoder,
            "refit_engine_up",
            "Whether the container engine answered when it was last asked",
            i64::from(up),
        )?;
    }
    Ok(())
}

fn encode_watched(watched: &Watched, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if let Some(images) = (watched.images)() {
        let help = "Images that are watched, by whether what runs here is what their registry has";
        let mut family =
            encoder.encode_descriptor("refit_images", help, None, MetricType::Gauge)?;
        for (state, count) in [
            ("behind", images.behind),
            ("current", images.current),
            ("unknown", images.unknown),
        ] {
            let labels = [("state", state)];
            ConstGauge::new(to_i64(count)).encode(family.encode_family(&labels)?)?;
        }
        encode_gauge(
            encoder,
            "refit_images_behind",
            "Images of which the registry has another one than what runs here",
            to_i64(images.behind),
        )?;
    }
    let requests = (watched.registry_requests)();
    if requests.is_empty() {
        return Ok(());
    }
    let help = "Requests to registries, by how they were answered; code 0: no answer came";
    let mut family =
        encoder.encode_descriptor("refit_registry_requests", help, None, MetricType::Counter)?;
    for (registry, code, count) in requests {
        let labels = [("registry", registry), ("code", code.to_string())];
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

fn to_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
