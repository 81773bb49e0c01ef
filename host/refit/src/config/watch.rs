//! `[watch]`: whether registries are watched, how often, and when updates may be applied.

use refit_service::watch::schedule::Schedule;
use refit_service::watch::windows::Windows;
use refit_service::watch::{WatchSettings, schedule, windows};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Watching for new images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// Whether `refit serve` looks by itself. `IMAGE_AUTO_REFRESH` sets it too.
    pub enabled: bool,
    /// From one look to the next, at most a week.
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub interval_seconds: u64,
    /// When to look instead: five fields, as cron has them, and `@hourly` and the like.
    pub cron: Option<String>,
    /// Time zone of `cron`, and of windows that name none: `Europe/Berlin`. Unset: the machine's.
    pub time_zone: Option<String>,
    /// Each look comes later by up to this, at random, so that machines which were started together do not ask together.
    #[schemars(range(max = SECONDS_MAX))]
    pub jitter_seconds: u64,
    /// How long a digest must have been in its registry, since a look saw it first, before it is adopted.
    #[schemars(range(max = AGE_MAX))]
    pub minimum_age_seconds: u64,
    /// How soon a refresh that failed is tried again for the same digest. Twice as long each time, up to six hours.
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub retry_seconds: u64,
    /// When updates may be adopted. With none, always.
    #[schemars(length(max = WINDOWS_MAX))]
    pub windows: Vec<WindowConfig>,
}

/// When updates may be adopted.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// The days on which it begins: `"mon"`, `"tue"`, … None: each.
    #[serde(default)]
    pub days: Vec<windows::Day>,
    /// Time of day, `"22:00"`.
    #[schemars(regex(pattern = TIME_OF_DAY))]
    pub start: String,
    /// Time of day, `"06:00"`. One that is not later than the start is on the next day.
    #[schemars(regex(pattern = TIME_OF_DAY))]
    pub end: String,
    /// Unset: that of `[watch]`.
    #[serde(default)]
    pub time_zone: Option<String>,
}

/// The part of the grammar that a pattern can express.
const TIME_OF_DAY: &str = "^[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?$";

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            // The interval of the platform's own watcher.
            interval_seconds: 300,
            cron: None,
            time_zone: None,
            // Spreads the requests of machines that were started together.
            jitter_seconds: 30,
            minimum_age_seconds: 0,
            // A container that always rolls back is down for its health check each time.
            retry_seconds: 300,
            windows: vec![],
        }
    }
}

/// A week. A larger value is a typing error.
const SECONDS_MAX: u64 = 7 * 24 * 60 * 60;
/// Half a year, for very careful operators.
const AGE_MAX: u64 = 180 * 24 * 60 * 60;
/// One for each hour of a week is more than any operator needs.
const WINDOWS_MAX: usize = 168;

impl WatchConfig {
    /// The settings for the watcher. `ticks` says whether it checks on a schedule.
    pub fn settings(&self) -> Result<WatchSettings, ConfigError> {
        let value = |key: &'static str, problem: String| ConfigError::Value { key, problem };
        let seconds: [(&'static str, u64, u64, u64); 4] = [
            (
                "watch.interval_seconds",
                self.interval_seconds,
                1,
                SECONDS_MAX,
            ),
            ("watch.jitter_seconds", self.jitter_seconds, 0, SECONDS_MAX),
            (
                "watch.minimum_age_seconds",
                self.minimum_age_seconds,
                0,
                AGE_MAX,
            ),
            ("watch.retry_seconds", self.retry_seconds, 1, SECONDS_MAX),
        ];
        for (key, seconds, least, most) in seconds {
            if !(least..=most).contains(&seconds) {
                let problem = format!("{seconds}, and may be {least} to {most}");
                return Err(value(key, problem));
            }
        }
        if self.windows.len() > WINDOWS_MAX {
            let problem = format!("{} windows, and may be {WINDOWS_MAX}", self.windows.len());
            return Err(value("watch.windows", problem));
        }
        let zone = schedule::load_zone(self.time_zone.as_deref());
        let zone = zone.map_err(|error| value("watch.time_zone", error.to_string()))?;
        let schedule = match &self.cron {
            Some(cron) => Schedule::from_cron(cron, zone.clone())
                .map_err(|error| value("watch.cron", error.to_string()))?,
            None => Schedule::from_interval(self.interval_seconds),
        };
        let windows = self.windows.iter().map(|window| {
            let zone = match &window.time_zone {
                Some(_) => schedule::load_zone(window.time_zone.as_deref())?,
                None => zone.clone(),
            };
            windows::Window::new(&window.days, &window.start, &window.end, zone)
        });
        let windows: Result<Vec<_>, schedule::ScheduleError> = windows.collect();
        Ok(WatchSettings {
            schedule: self
                .enabled
                .then(|| schedule.with_jitter(self.jitter_seconds)),
            windows: Windows(windows.map_err(|error| value("watch.windows", error.to_string()))?),
            minimum_age: jiff::SignedDuration::from_secs(self.minimum_age_seconds as i64),
            retry: std::time::Duration::from_secs(self.retry_seconds),
        })
    }
}

/// The value of `IMAGE_AUTO_REFRESH`. The platform's own watcher ran only for `true`; a blank value counts as unset.
pub(super) fn auto_refresh(variable: &str) -> Option<bool> {
    match variable.trim().to_ascii_lowercase().as_str() {
        "" => None,
        "true" | "1" => Some(true),
        _ => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_true_means_true_and_blank_says_nothing() {
        for (variable, expected) in [
            ("true", Some(true)),
            (" TRUE\n", Some(true)),
            ("1", Some(true)),
            ("yes", Some(false)),
            ("false", Some(false)),
            ("0", Some(false)),
            ("", None),
            ("  ", None),
        ] {
            assert_eq!(auto_refresh(variable), expected, "{variable:?}");
        }
    }

    #[test]
    fn cron_goes_before_the_interval() {
        let config = WatchConfig {
            enabled: true,
            cron: Some("0 3 * * *".into()),
            time_zone: Some("UTC".into()),
            jitter_seconds: 0,
            ..WatchConfig::default()
        };
        let ticks = config.settings().unwrap().schedule.expect("it is enabled");
        let next = ticks.next("2026-11-25T12:00:00Z".parse().unwrap(), 0.0);
        assert_eq!(next.to_string(), "2026-11-26T03:00:00Z");
        assert!(
            WatchConfig::default()
                .settings()
                .unwrap()
                .schedule
                .is_none()
        );
    }
}
