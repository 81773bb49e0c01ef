//! Progress while a refresh runs: bars on a terminal, a line for each thing that ended elsewhere. On stderr.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::table::{image_line, recreation_line};
use crate::image::ImageRef;
use crate::journal::{Event, Events};
use crate::progress::Transferred;

/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(120);

pub(super) fn events(bars: MultiProgress) -> Events {
    if !std::io::stderr().is_terminal() {
        return Arc::new(|event| {
            if let Some(line) = plain(&event) {
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
            .on(event)
    })
}

/// What is told where there are no bars. Starts and layers would only be noise in a log.
fn plain(event: &Event) -> Option<String> {
    match event {
        Event::PullEnded(record) => Some(image_line(record)),
        Event::RecreateEnded(record) => Some(recreation_line(record)),
        Event::PullStarted { .. }
        | Event::Layer { .. }
        | Event::RecreateStarted { .. }
        | Event::Step { .. } => None,
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
    fn on(&mut self, event: Event) {
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
                pull.transferred.on(&layer);
                let (current, total) = pull.transferred.bytes();
                pull.bar.set_message(format!(
                    "pulling {image}  {} of {}",
                    HumanBytes(current),
                    HumanBytes(total)
                ));
            }
            Event::PullEnded(record) => {
                if let Some(pull) = self.pulls.remove(&record.image) {
                    pull.bar.finish_and_clear();
                }
                self.say(&image_line(&record));
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
                self.say(&recreation_line(&record));
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
        bar.enable_steady_tick(TURN);
        bar
    }

    fn say(&self, line: &str) {
        let _ = self.bars.println(line);
    }
}
