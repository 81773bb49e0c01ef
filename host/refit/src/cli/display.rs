//! Shows the progress of a refresh on stderr: bars on a terminal, lines elsewhere.
//!
//! Nothing here has a color, so `NO_COLOR` changes nothing. A terminal that cannot move its cursor (`TERM=dumb`) gets lines.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use refit_model::event::{Event, Events};
use refit_model::image::ImageRef;
use refit_model::pull::Transferred;

use super::table::{image_line, recreation_line};

/// The interval of a spinner.
const SPINNER_INTERVAL: Duration = Duration::from_millis(120);

/// How long a pull runs without a line if there are no bars. Layers would only be noise in a log, and a job that prints nothing for
/// minutes looks hung.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

pub(super) fn events(bars: MultiProgress) -> Events {
    let term = std::env::var("TERM").ok();
    if !can_animate(std::io::stderr().is_terminal(), term.as_deref()) {
        let plain = Mutex::new(Plain::default());
        return Arc::new(move |event| {
            let line = {
                let mut plain = plain.lock().unwrap_or_else(PoisonError::into_inner);
                plain.line(&event, Instant::now())
            };
            if let Some(line) = line {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        });
    }
    let shown = Mutex::new(Shown {
        bars,
        pulls: HashMap::new(),
        recreations: HashMap::new(),
    });
    Arc::new(move |event| {
        shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .show_event(event)
    })
}

/// Whether the terminal can overwrite lines. A terminal without a name is unknown.
fn can_animate(terminal: bool, term: Option<&str>) -> bool {
    terminal && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// The progress: `3 of 7 layers, 12.00 MiB of 40.10 MiB`. Empty at the start.
fn progress_text(pull: &Transferred) -> String {
    let (done, layers) = pull.layers();
    let (current, total) = pull.bytes();
    match (layers, total) {
        (0, _) => String::new(),
        (_, 0) => format!("{done} of {layers} layers"),
        _ => format!(
            "{done} of {layers} layers, {} of {}",
            HumanBytes(current),
            HumanBytes(total)
        ),
    }
}

/// Prints lines if there are no bars: finished steps, and sometimes the progress of a long pull. The report has the reasons of
/// failures, once for all of them.
#[derive(Default)]
struct Plain {
    /// The running pulls, with the time of the last line about each.
    pulls: HashMap<ImageRef, (Transferred, Instant)>,
}

impl Plain {
    fn line(&mut self, event: &Event, now: Instant) -> Option<String> {
        match event {
            Event::PullStarted { image } => {
                self.pulls
                    .insert(image.clone(), (Transferred::default(), now));
                None
            }
            Event::Layer { image, layer } => {
                let (pull, last_line) = self.pulls.get_mut(image)?;
                pull.on(layer);
                if now.duration_since(*last_line) < LINE_INTERVAL {
                    return None;
                }
                *last_line = now;
                Some(format!(
                    "pulling           {image}  {}",
                    progress_text(pull)
                ))
            }
            Event::PullEnded(record) => {
                self.pulls.remove(&record.image);
                Some(image_line(record))
            }
            Event::RecreateEnded(record) => Some(recreation_line(record)),
            Event::RecreateStarted { .. } | Event::Step { .. } => None,
        }
    }
}

struct Shown {
    bars: MultiProgress,
    pulls: HashMap<ImageRef, Pull>,
    recreations: HashMap<String, ProgressBar>,
}

struct Pull {
    bar: ProgressBar,
    transferred: Transferred,
}

impl Shown {
    fn show_event(&mut self, event: Event) {
        match event {
            Event::PullStarted { image } => {
                let bar = self.spinner(format!("pulling {image}"));
                self.pulls.insert(
                    image,
                    Pull {
                        bar,
                        transferred: Transferred::default(),
                    },
                );
            }
            Event::Layer { image, layer } => {
                let Some(pull) = self.pulls.get_mut(&image) else {
                    return;
                };
                if pull.transferred.on(&layer) {
                    let so_far = progress_text(&pull.transferred);
                    pull.bar.set_message(format!("pulling {image}  {so_far}"));
                }
            }
            Event::PullEnded(record) => {
                if let Some(pull) = self.pulls.remove(&record.image) {
                    pull.bar.finish_and_clear();
                }
                self.print_line(&image_line(&record));
            }
            Event::RecreateStarted { container } => {
                let bar = self.spinner(format!("recreating {container}"));
                self.recreations.insert(container, bar);
            }
            Event::Step { container, step } => {
                if let Some(bar) = self.recreations.get(&container) {
                    bar.set_message(format!("recreating {container}: {step}"));
                }
            }
            Event::RecreateEnded(record) => {
                if let Some(bar) = self.recreations.remove(&record.container) {
                    bar.finish_and_clear();
                }
                self.print_line(&recreation_line(&record));
            }
        }
    }

    fn spinner(&self, message: String) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.set_message(message);
        bar.enable_steady_tick(SPINNER_INTERVAL);
        bar
    }

    fn print_line(&self, line: &str) {
        let _ = self.bars.println(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::pull::LayerProgress;
    use refit_model::pull::{ImageOutcome, ImageRecord};

    fn image() -> ImageRef {
        "ghcr.io/acme/app:1".parse().unwrap()
    }

    fn layer(status: &str, current: u64) -> Event {
        Event::Layer {
            image: image(),
            layer: LayerProgress {
                layer: "a".into(),
                status: status.into(),
                current_bytes: Some(current),
                total_bytes: Some(4096),
            },
        }
    }

    fn ended(outcome: ImageOutcome) -> Event {
        Event::PullEnded(ImageRecord {
            image: image(),
            outcome,
            id: None,
            digest: None,
            failure: None,
            duration: Duration::ZERO,
        })
    }

    #[test]
    fn only_a_capable_terminal_is_animated() {
        assert!(can_animate(true, Some("xterm-256color")));
        for (terminal, term) in [
            (false, Some("xterm")),
            (true, Some("dumb")),
            (true, Some("")),
            (true, None),
        ] {
            assert!(!can_animate(terminal, term), "{terminal} {term:?}");
        }
    }

    #[test]
    fn short_pull_is_one_line_and_a_long_one_reports_progress() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut plain = Plain::default();
        let started = Event::PullStarted { image: image() };
        assert_eq!(plain.line(&started, at(0)), None);
        assert_eq!(plain.line(&layer("Downloading", 1024), at(29)), None);
        let line = plain.line(&layer("Downloading", 2048), at(30));
        assert_eq!(
            line.as_deref(),
            Some("pulling           ghcr.io/acme/app:1  0 of 1 layers, 2.00 KiB of 4.00 KiB")
        );
        assert_eq!(plain.line(&layer("Extracting", 1), at(31)), None);
        assert_eq!(
            plain.line(&ended(ImageOutcome::Pulled), at(32)).as_deref(),
            Some("pulled            ghcr.io/acme/app:1")
        );
        assert_eq!(plain.line(&layer("Extracting", 1), at(99)), None);
    }
}
