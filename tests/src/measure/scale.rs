//! What a plan and a refresh take as containers get many: the program's own time and memory, beside the same questions asked of the
//! engine by a client that does nothing with the answers. The containers were made and never started, which an engine can do with
//! thousands; the policy looks at each and leaves it alone.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::order::{Given, LONGEST, ask, refit};
use crate::{install, progress};

/// Of each, the median is told.
const TIMES: usize = 3;

/// One number of containers.
#[derive(Debug, Serialize)]
pub struct Row {
    pub containers: usize,
    /// By a client that does nothing with the answers.
    pub ask_ms: u64,
    pub plan: Took,
    pub refresh: Took,
    pub engine_calls: usize,
}

/// A run of the whole program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Took {
    pub ms: u64,
    /// In user mode.
    pub processor_ms: u64,
    /// Resident at most.
    pub kib: u64,
}

/// Sizes in rising order.
pub async fn rows(given: &Given<'_>, sizes: &[usize]) -> anyhow::Result<Vec<Row>> {
    install::ensure(&[("/usr/bin/time", "time")])?;
    given.images.learn().await?;
    let (mut rows, mut there) = (Vec::new(), 0);
    for &containers in sizes {
        given.images.create(there..containers).await?;
        there = containers;
        progress(&format!("{containers} containers are there"));
        let mut ask_ms = Vec::new();
        for _ in 0..TIMES {
            let began = Instant::now();
            ask(given).await?;
            ask_ms.push(u64::try_from(began.elapsed().as_millis())?);
        }
        ask_ms.sort_unstable();
        let plan = took(given, "plan").await?;
        let calls = given.proxy.asked().len();
        let refresh = took(given, "refresh").await?;
        rows.push(Row {
            containers,
            ask_ms: ask_ms[TIMES / 2],
            plan,
            refresh,
            engine_calls: (given.proxy.asked().len() - calls) / TIMES,
        });
    }
    given.images.clear().await?;
    Ok(rows)
}

async fn took(given: &Given<'_>, command: &str) -> anyhow::Result<Took> {
    let program = given
        .refit
        .to_str()
        .context("the program's path is not UTF-8")?;
    let mut took = Vec::new();
    for _ in 0..TIMES {
        let timed = refit(given, Path::new("/usr/bin/time"), "replace")?;
        let arguments = ["-f", "%e %U %M", "-o", "took", program, command, "--json"];
        let output = timed.run_within(LONGEST, &arguments).await?;
        ensure!(output.status == 0, "`refit {command}` failed:\n{output}");
        let told = std::fs::read_to_string(timed.home().join("took"))?;
        let numbers: Result<Vec<f64>, _> = told.split_whitespace().map(str::parse).collect();
        let [seconds, processor, kib] = numbers?[..] else {
            anyhow::bail!("`time` said: {told}");
        };
        took.push(Took {
            ms: (seconds * 1000.0) as u64,
            processor_ms: (processor * 1000.0) as u64,
            kib: kib as u64,
        });
    }
    took.sort_unstable();
    Ok(took[TIMES / 2])
}

/// Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| containers | asking alone, s | plan, s | of it computing, s | resident, MiB | refresh, s | of it computing, s | resident, MiB | engine calls |\n\
         | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n",
    );
    let seconds = |ms: u64| format!("{:.2}", ms as f64 / 1000.0);
    let took = |it: Took| {
        let mib = it.kib as f64 / 1024.0;
        format!(
            "{} | {} | {mib:.1}",
            seconds(it.ms),
            seconds(it.processor_ms)
        )
    };
    for row in rows {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} |\n",
            row.containers,
            seconds(row.ask_ms),
            took(row.plan),
            took(row.refresh),
            row.engine_calls,
        ));
    }
    text
}
