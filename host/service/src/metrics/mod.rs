//! The metrics of the daemon. Only this module uses prometheus-client.
//!
//! [`Metrics`] counts events of refreshes, as one of their observers. Other parts of the daemon keep their own numbers
//! ([`Sources`], [`Watched`]); Refit reads these at each scrape and counts nothing twice. `source_collector` turns them into
//! metrics, `process` describes this process.
//!
//! `docs/observing.md` guarantees names and labels. Each label has a few known values, or its source bounds their number.

mod process;
mod source_collector;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use self::source_collector::SourceCollector;
pub use self::source_collector::{ImageCounts, Sources, Watched};
use refit_history::Outcome;
use refit_model::event::Event;
use refit_model::pull::ImageOutcome;
use refit_model::recreation::RecreationOutcome;
use refit_model::report::Report;
use refit_model::request::Trigger;
use refit_refresh::RefreshError;
use refit_sandbox::PolicyErrorKind;

use crate::runs::{Observer, RefreshHandle, RunEvent};

/// A replacement on an idle machine takes half a second. A replacement that waits for a stop timeout takes ten more; one minute
/// means a program that does not start.
const GAP_SECONDS: [f64; 12] = [
    0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 15.0, 30.0, 60.0,
];

/// From a refresh with nothing to do, to eight large images and hundreds of containers.
const REFRESH_SECONDS: [f64; 12] = [
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];

/// From a layer or two on a fast network to 7 GB on a slow one.
const PULL_SECONDS: [f64; 10] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The registry of metrics. See the [module documentation](self).
pub struct Metrics {
    registry: Registry,
    collector: Arc<SourceCollector>,
    refreshes: Family<Labels<2>, Counter>,
    refresh_duration: Histogram,
    containers: Family<Labels<1>, Counter>,
    gap: Histogram,
    pulls: Family<Labels<1>, Counter>,
    pull_duration: Histogram,
    traps: Family<Labels<1>, Counter>,
}

/// The text format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, 0.0.4.
    Prometheus,
    OpenMetrics,
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let collector = Arc::new(SourceCollector::default());
        let mut metrics = Self {
            registry: Registry::default(),
            collector: collector.clone(),
            refreshes: Family::default(),
            refresh_duration: Histogram::new(REFRESH_SECONDS),
            containers: Family::default(),
            gap: Histogram::new(GAP_SECONDS),
            pulls: Family::default(),
            pull_duration: Histogram::new(PULL_SECONDS),
            traps: Family::default(),
        };
        metrics.register();
        metrics.registry.register_collector(Box::new(collector));
        metrics
            .registry
            .register_collector(Box::new(process::Process));
        metrics.initialize_counters();
        metrics
    }
}

impl Metrics {
    /// Sets the sources of the daemon's numbers. Only the first call has an effect.
    pub fn set_sources(&self, sources: Sources) {
        self.collector.set_sources(sources);
    }

    /// Sets the sources of the watcher's numbers. Only the first call has an effect.
    pub fn set_watched(&self, watched: Watched) {
        self.collector.set_watched(watched);
    }

    /// Returns the current value of all metrics as text.
    pub fn text(&self, format: Format) -> String {
        let mut text = String::new();
        // Writing into memory does not fail.
        let _ = match format {
            Format::Prometheus => prometheus_text::encode(&mut text, &self.registry),
            Format::OpenMetrics => text::encode(&mut text, &self.registry),
        };
        text
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "refit_build",
            "The version of Refit that is running",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "refit_refreshes",
            "Refreshes that have ended, by who or what asked and what they came to; plans are none",
            self.refreshes.clone(),
        );
        registry.register_with_unit(
            "refit_refresh_duration",
            "How long refreshes took, from their beginning to their end",
            Unit::Seconds,
            self.refresh_duration.clone(),
        );
        registry.register(
            "refit_containers",
            "Containers that refreshes were to recreate, by what became of them",
            self.containers.clone(),
        );
        registry.register_with_unit(
            "refit_gap",
            "How long nothing ran under the name of a container that was recreated",
            Unit::Seconds,
            self.gap.clone(),
        );
        registry.register(
            "refit_pulls",
            "Images that refreshes pulled or tried to, by what came of it",
            self.pulls.clone(),
        );
        registry.register_with_unit(
            "refit_pull_duration",
            "How long pulls took, those of images that were up to date included",
            Unit::Seconds,
            self.pull_duration.clone(),
        );
        registry.register(
            "refit_policy_traps",
            "Refreshes that ended because of their policy, by what was wrong with it",
            self.traps.clone(),
        );
    }

    /// Creates all counters with the value 0: `increase` misses the first step of a counter that appears later.
    fn initialize_counters(&self) {
        for trigger in Trigger::ALL {
            for outcome in [
                Outcome::Done,
                Outcome::SomeFailed,
                Outcome::Cancelled,
                Outcome::Failed,
            ] {
                drop(
                    self.refreshes
                        .get_or_create(&refresh_labels(trigger, outcome)),
                );
            }
        }
        for outcome in RecreationOutcome::ALL {
            if outcome != RecreationOutcome::WouldRecreate {
                drop(
                    self.containers
                        .get_or_create(&outcome_labels(outcome.as_str())),
                );
            }
        }
        for outcome in [
            ImageOutcome::Pulled,
            ImageOutcome::UpToDate,
            ImageOutcome::Failed,
        ] {
            drop(self.pulls.get_or_create(&outcome_labels(outcome.as_str())));
        }
        for kind in PolicyErrorKind::REFRESH_KINDS {
            drop(self.traps.get_or_create(&[("kind", kind.as_str())]));
        }
    }

    fn record_ended(&self, run: &RefreshHandle, answer: &Result<Report, RefreshError>) {
        let labels = refresh_labels(run.request.trigger, run.outcome());
        self.refreshes.get_or_create(&labels).inc();
        self.refresh_duration.observe(run.duration().as_secs_f64());
        if let Err(RefreshError::Policy { error, .. }) = answer {
            let kind = [("kind", error.kind().as_str())];
            self.traps.get_or_create(&kind).inc();
        }
    }

    fn record_event(&self, event: &Event) {
        match event {
            Event::PullEnded(record) => {
                let outcome = outcome_labels(record.outcome.as_str());
                self.pulls.get_or_create(&outcome).inc();
                self.pull_duration.observe(seconds(record.duration));
            }
            Event::RecreateEnded(record) => {
                let outcome = outcome_labels(record.outcome.as_str());
                self.containers.get_or_create(&outcome).inc();
                if let (RecreationOutcome::Recreated, Some(gap)) = (record.outcome, record.gap) {
                    self.gap.observe(seconds(gap));
                }
            }
            Event::PullStarted { .. }
            | Event::Layer { .. }
            | Event::RecreateStarted { .. }
            | Event::Step { .. } => {}
        }
    }
}

impl Observer for Metrics {
    fn observe(&self, run: &RefreshHandle, run_event: &RunEvent<'_>) {
        match run_event {
            // `Sources::under_way` has the number of running refreshes.
            RunEvent::Began => {}
            RunEvent::Event(event) => self.record_event(event),
            RunEvent::Ended(answer) => self.record_ended(run, answer),
        }
    }
}

fn refresh_labels(trigger: Trigger, outcome: Outcome) -> Labels<2> {
    [("trigger", trigger.as_str()), ("outcome", outcome.as_str())]
}

fn outcome_labels(outcome: &'static str) -> Labels<1> {
    [("outcome", outcome)]
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests;
