//! What a person wants to see when a test has failed. Never fails itself: what cannot be found out is said so.

use std::fmt::Write;

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::TryStreamExt;

use super::{World, clean};
use crate::bounded::{CALL, within};

/// Enough to see how a program of the tests ended.
const LOG_LINES: &str = "20";

impl World {
    /// The state and last output of every container.
    pub(super) async fn diagnosis(&self) -> String {
        let mut text = format!(
            "--- world {} of `{}` on {}\n",
            self.prefix(),
            self.shared.test,
            self.docker_host()
        );
        let containers = match self.own_containers().await {
            Ok(containers) => containers,
            Err(error) => return format!("{text}(no containers to show: {error:#})\n"),
        };
        for container in &containers {
            let status = container.status.as_deref().unwrap_or("in no known state");
            let image = container.image.as_deref().unwrap_or("an unknown image");
            let _ = writeln!(text, "{}: {status}; {image}", clean::name(container));
            let log = self
                .last_lines(container.id.as_deref().unwrap_or_default())
                .await;
            let log = log.unwrap_or_else(|error| format!("(no log to show: {error:#})"));
            for line in log.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
        let _ = writeln!(text, "--- {} container(s)", containers.len());
        text
    }

    async fn last_lines(&self, container: &str) -> anyhow::Result<String> {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail(LOG_LINES)
            .build();
        let chunks = self
            .docker()
            .logs(container, Some(options))
            .try_collect::<Vec<_>>();
        let chunks = within(CALL, "read its log", chunks).await?;
        Ok(chunks.iter().map(ToString::to_string).collect())
    }
}
