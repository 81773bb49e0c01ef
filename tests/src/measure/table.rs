//! What was measured, for people and for programs: medians and spread.

use serde::Serialize;

use super::order::Order;

/// One measurement.
#[derive(Debug, Clone)]
pub struct Sample {
    pub order: Order,
    pub containers: usize,
    /// Until the order itself was done: for Refit, until the last proof has passed and the old containers are gone.
    pub total_ms: u64,
    /// Until the last container's program listened; `None` where nothing took its place.
    pub renewed_ms: Option<u64>,
    /// One per container, where something took its place.
    pub gaps_ms: Vec<u64>,
    pub engine_calls: usize,
    pub registry_requests: usize,
    /// Milliseconds that the machine's processors were busy with anything, all of them together.
    pub processor_ms: u64,
}

/// All measurements of one order and size.
#[derive(Debug, Serialize)]
pub struct Row {
    pub order: String,
    pub containers: usize,
    pub runs: usize,
    pub total_ms: Spread,
    pub renewed_ms: Option<Spread>,
    /// Of the runs' medians.
    pub gap_ms: Option<Spread>,
    /// The longest of any container in any run.
    pub gap_longest_ms: Option<u64>,
    pub engine_calls: u64,
    pub registry_requests: u64,
    pub processor_ms: Spread,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub least: u64,
    pub median: u64,
    pub most: u64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        Some(Self {
            least: *values.first()?,
            median: values[values.len() / 2],
            most: *values.last()?,
        })
    }
}

/// Sorted by size and order.
pub fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut kinds: Vec<_> = samples
        .iter()
        .map(|sample| (sample.containers, sample.order))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
        .into_iter()
        .filter_map(|(containers, order)| {
            let of = |pick: &dyn Fn(&Sample) -> Option<u64>| {
                let ours = samples
                    .iter()
                    .filter(|sample| (sample.containers, sample.order) == (containers, order));
                Spread::of(ours.filter_map(pick).collect())
            };
            Some(Row {
                order: order.name(),
                containers,
                runs: samples
                    .iter()
                    .filter(|sample| (sample.containers, sample.order) == (containers, order))
                    .count(),
                total_ms: of(&|sample| Some(sample.total_ms))?,
                renewed_ms: of(&|sample| sample.renewed_ms),
                gap_ms: of(&|sample| Spread::of(sample.gaps_ms.clone()).map(|gap| gap.median)),
                gap_longest_ms: of(&|sample| sample.gaps_ms.iter().max().copied())
                    .map(|it| it.most),
                engine_calls: of(&|sample| Some(sample.engine_calls as u64))?.median,
                registry_requests: of(&|sample| Some(sample.registry_requests as u64))?.median,
                processor_ms: of(&|sample| Some(sample.processor_ms))?,
            })
        })
        .collect()
}

/// Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| containers | order | runs | all new ones listen, s | done, s | gap, ms | longest gap, ms | engine calls | registry requests | processors busy, s |\n\
         | --: | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n",
    );
    for row in rows {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.containers,
            row.order,
            row.runs,
            or_none(row.renewed_ms.map(seconds)),
            seconds(row.total_ms),
            or_none(row.gap_ms.map(milliseconds)),
            or_none(row.gap_longest_ms.map(|ms| ms.to_string())),
            row.engine_calls,
            row.registry_requests,
            seconds(row.processor_ms),
        ));
    }
    text
}

/// The median, and the spread where there is one.
fn milliseconds(spread: Spread) -> String {
    let Spread {
        least,
        median,
        most,
    } = spread;
    if least == most {
        return median.to_string();
    }
    format!("{median} ({least} to {most})")
}

fn seconds(spread: Spread) -> String {
    // What takes less than a second would all be the same in tenths of one.
    let digits = if spread.most < 1000 { 3 } else { 1 };
    let seconds = |ms: u64| format!("{:.digits$}", ms as f64 / 1000.0);
    let median = seconds(spread.median);
    if spread.least == spread.most {
        return median;
    }
    format!(
        "{median} ({} to {})",
        seconds(spread.least),
        seconds(spread.most)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_by_size_and_order_and_tell_the_median() {
        let sample = |containers, order, total_ms, gaps_ms: &[u64]| Sample {
            order,
            containers,
            total_ms,
            renewed_ms: gaps_ms.iter().max().copied(),
            gaps_ms: gaps_ms.to_vec(),
            engine_calls: 1,
            registry_requests: 2,
            processor_ms: 3,
        };
        let rows = rows(&[
            sample(40, Order::Replace(None), 9000, &[5, 1, 9]),
            sample(8, Order::Replace(None), 3000, &[1]),
            sample(8, Order::Original, 1000, &[]),
            sample(8, Order::Replace(None), 1000, &[7]),
            sample(8, Order::Replace(None), 2000, &[3]),
        ]);
        let kinds: Vec<_> = rows
            .iter()
            .map(|row| (row.containers, row.order.as_str(), row.runs))
            .collect();
        assert_eq!(
            kinds,
            [(8, "original", 1), (8, "replace", 3), (40, "replace", 1)]
        );
        assert_eq!(rows[0].gap_ms, None);
        assert_eq!(
            rows[1].total_ms,
            Spread {
                least: 1000,
                median: 2000,
                most: 3000
            }
        );
        assert_eq!(
            rows[1].gap_ms,
            Some(Spread {
                least: 1,
                median: 3,
                most: 7
            })
        );
        assert_eq!(rows[2].gap_longest_ms, Some(9));
    }
}
