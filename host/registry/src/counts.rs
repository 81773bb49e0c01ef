//! Counts requests by registry and response status, for metrics. The number of both is bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The number of registries with separate counts. A platform has a handful; all further ones share one entry.
const REGISTRIES_MAX: usize = 32;
const OTHERS: &str = "other";

/// Statuses with separate counts. Others are counted by their hundred.
const STATUSES: [u16; 15] = [
    200, 301, 302, 307, 308, 400, 401, 403, 404, 405, 429, 500, 502, 503, 504,
];

#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<String, BTreeMap<u16, u64>>>);

impl Counts {
    /// Counts a request; `None` if no response came.
    pub fn add(&self, registry: &str, status: Option<u16>) {
        let status = match status {
            None => 0,
            Some(status) if STATUSES.contains(&status) => status,
            Some(status) => status / 100 * 100,
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.contains_key(registry) || all.len() < REGISTRIES_MAX;
        let name = if known { registry } else { OTHERS };
        *all.entry(name.to_owned())
            .or_default()
            .entry(status)
            .or_default() += 1;
    }

    /// Returns registry, status (0 for no response) and count, sorted.
    pub fn all(&self) -> Vec<(String, u16, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = all.iter().flat_map(|(registry, statuses)| {
            let lines = statuses.iter();
            lines.map(|(status, count)| (registry.clone(), *status, *count))
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_in_registries_and_statuses() {
        let counts = Counts::default();
        for n in 0..1000u16 {
            counts.add(&format!("r{n}.example"), Some(n));
            counts.add("r0.example", Some(n));
        }
        counts.add("r0.example", None);
        let all = counts.all();
        let registries: std::collections::BTreeSet<_> = all.iter().map(|it| &it.0).collect();
        assert_eq!(registries.len(), REGISTRIES_MAX + 1);
        assert!(all.len() <= (REGISTRIES_MAX + 1) * (STATUSES.len() + 11));
        assert_eq!(all.iter().map(|it| it.2).sum::<u64>(), 2001);
    }
}
