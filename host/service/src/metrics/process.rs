//! Metrics of this process, under the usual names of exporters. Refit reads `/proc`; without it there are none.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// The unit of time in `/proc`. It is part of the kernel's interface to programs, and the same on all platforms that Refit
/// builds for.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

/// The values from `/proc`. Each may be missing.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident_bytes: Option<i64>,
    open_files: Option<i64>,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reading = Reading::now();
        if let Some(seconds) = reading.cpu_seconds {
            let help = "Time that the processors worked for this process";
            let metric = encoder.encode_descriptor(
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                MetricType::Counter,
            )?;
            ConstCounter::new(seconds).encode(metric)?;
        }
        let gauges: [(_, _, _, Option<Box<dyn EncodeMetric>>); 3] = [
            (
                "process_start_time",
                "When this process began, since the Unix epoch",
                Some(Unit::Seconds),
                gauge(reading.start_seconds),
            ),
            (
                "process_resident_memory",
                "Memory of this process that is in RAM",
                Some(Unit::Bytes),
                gauge(reading.resident_bytes),
            ),
            (
                "process_open_fds",
                "Files, sockets and the like that this process has open",
                None,
                gauge(reading.open_files),
            ),
        ];
        for (name, help, unit, value) in gauges {
            if let Some(value) = value {
                let kind = MetricType::Gauge;
                value.encode(encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)?;
            }
        }
        Ok(())
    }
}

fn gauge<N: EncodeGaugeValue + 'static>(value: Option<N>) -> Option<Box<dyn EncodeMetric>> {
    value.map(|value| Box::new(ConstGauge::new(value)) as Box<dyn EncodeMetric>)
}

impl Reading {
    fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let files = fs::read_dir("/proc/self/fd").ok();
        Self {
            // One of them is the folder that this reads.
            open_files: files.and_then(|files| i64::try_from(files.count().saturating_sub(1)).ok()),
            ..Self::parse(
                &read("/proc/self/stat"),
                &read("/proc/stat"),
                &read("/proc/self/status"),
            )
        }
    }

    /// Parses the files in `/proc`. See proc(5).
    fn parse(stat: &str, machine: &str, status: &str) -> Self {
        // The name of the program is in brackets and may contain anything. The third field follows it.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, fields)| fields.split_ascii_whitespace().collect())
            .unwrap_or_default();
        let seconds = |field: usize| -> Option<f64> {
            let ticks: f64 = fields.get(field - 3)?.parse().ok()?;
            Some(ticks / TICKS_PER_SECOND)
        };
        let line = |text: &str, name: &str| -> Option<f64> {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_ascii_whitespace().next()?.parse().ok()
        };
        Self {
            cpu_seconds: seconds(14)
                .zip(seconds(15))
                .map(|(user, system)| user + system),
            start_seconds: line(machine, "btime ")
                .zip(seconds(22))
                .map(|(boot, since)| boot + since),
            resident_bytes: line(status, "VmRSS:").map(|kib| (kib * 1024.0) as i64),
            open_files: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_format_is_parsed() {
        let stat =
            "42 (re) fit) S 1 42 42 0 -1 4194304 900 0 0 0 150 50 0 0 20 0 9 0 12345 1000000 500 0";
        let reading = Reading::parse(
            stat,
            "cpu 1 2\nbtime 1700000000\n",
            "Name:\trefit\nVmRSS:\t   2048 kB\n",
        );
        let expected = Reading {
            cpu_seconds: Some(2.0),
            start_seconds: Some(1_700_000_123.45),
            resident_bytes: Some(2 << 20),
            open_files: None,
        };
        assert_eq!(reading, expected);
        assert_eq!(Reading::parse("", "", ""), Reading::default());
    }
}
