//! What is asked of others at each look, and how their answers are written down.

use std::fmt;
use std::sync::OnceLock;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use refit_model::report::PolicyReport;

/// Asked while somebody waits for all numbers, so it answers from memory.
type Ask<T> = Box<dyn Fn() -> T + Send + Sync>;

/// What the parts of a daemon know.
pub struct Sources {
    /// Refreshes.
    pub under_way: Ask<usize>,
    /// Replacements that were left half done.
    pub unfinished: Ask<usize>,
    /// The active one.
    pub policy: Ask<PolicyReport>,
    /// `None` where no history is kept.
    pub history_writable: Ask<Option<bool>>,
    /// `None` where nobody has asked yet.
    pub engine_up: Ask<Option<bool>>,
}

/// What the watcher knows.
pub struct Watched {
    /// `None` before its first look.
    pub images: Ask<Option<ImageCounts>>,
    /// Registry, status (0: no answer came), number since the start. Bounded by whoever counts.
    pub registry_requests: Ask<Vec<(String, u16, u64)>>,
}

/// Images that are watched, by what is known of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageCounts {
    /// The registry has another one than what runs here.
    pub behind: usize,
    pub current: usize,
    /// It could not be found out.
    pub unknown: usize,
}

#[derive(Default)]
pub(super) struct SourceCollector {
    sources: OnceLock<Sources>,
    watched: OnceLock<Watched>,
}

impl fmt::Debug for SourceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

impl SourceCollector {
    pub(super) fn ask(&self, sources: Sources) {
        let _ = self.sources.set(sources);
    }

    pub(super) fn ask_watcher(&self, watched: Watched) {
        let _ = self.watched.set(watched);
    }
}

impl Collector for SourceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(sources) = self.sources.get() {
            of_parts(sources, &mut encoder)?;
        }
        if let Some(watched) = self.watched.get() {
            of_watcher(watched, &mut encoder)?;
        }
        Ok(())
    }
}

fn of_parts(sources: &Sources, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    gauge(
        encoder,
        "refit_refreshes_under_way",
        "Refreshes that have begun and not ended",
        number((sources.under_way)()),
    )?;
    gauge(
        encoder,
        "refit_replacements_unfinished",
        "Replacements that were left half done, and that nobody is at work on: a person may be needed",
        number((sources.unfinished)()),
    )?;
    let policy = (sources.policy)();
    gauge(
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
        gauge(
            encoder,
            "refit_history_writable",
            "Whether the last refresh could be written down (1) or not (0)",
            i64::from(writable),
        )?;
    }
    if let Some(up) = (sources.engine_up)() {
        gauge(
            encoder,
            "refit_engine_up",
            "Whether the container engine answered when it was last asked",
            i64::from(up),
        )?;
    }
    Ok(())
}

fn of_watcher(watched: &Watched, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
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
            ConstGauge::new(number(count)).encode(family.encode_family(&labels)?)?;
        }
        gauge(
            encoder,
            "refit_images_behind",
            "Images of which the registry has another one than what runs here",
            number(images.behind),
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

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
