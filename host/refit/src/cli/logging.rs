//! Writes the log to stderr, without disturbing the progress display.

use std::io::{self, IsTerminal as _, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use refit_model::diagnostic::Diagnostic;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

use super::arguments::LogFormat;

/// Start the log, and return the target for progress bars, which are hidden while a log line is written.
pub(super) fn start(filter: &str, format: LogFormat) -> Result<MultiProgress, Diagnostic> {
    // Not `EnvFilter`: its regular expressions take a tenth of a second and eight megabytes, for filters on fields that Refit does
    // not need.
    let targets: Targets = filter.parse().map_err(|error: ParseError| {
        Diagnostic::new(format!("`{filter}` is no log level or filter"))
            .because(error.to_string())
            .hint("for example `--log info`")
    })?;
    let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(coloured())
        .with_writer(AroundBars(bars.clone()));
    let layer = match format {
        LogFormat::Text => layer.compact().with_target(false).boxed(),
        // Print a span's fields once, since spans are not nested.
        LogFormat::Json => layer.json().with_span_list(false).boxed(),
    };
    // A second start (in one process, in tests) keeps the first log.
    let _ = Registry::default().with(targets).with(layer).try_init();
    Ok(bars)
}

/// Whether to use color, see <https://no-color.org>.
fn coloured() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    io::stderr().is_terminal()
        && set("NO_COLOR").is_none()
        && set("TERM").is_some_and(|term| term != "dumb")
}

struct AroundBars(MultiProgress);

impl<'a> MakeWriter<'a> for AroundBars {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            bars: self.0.clone(),
            text: Vec::new(),
        }
    }
}

/// A log line, which is written as a whole when it is complete, while the bars are hidden.
struct Line {
    bars: MultiProgress,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.bars.suspend(|| {
            let _ = io::stderr().lock().write_all(&self.text);
        });
    }
}
