//! `refit notify test`: check that notifications arrive.

use std::time::Instant;

use refit_model::diagnostic::Diagnostic;
use refit_service::notify;
use refit_service::notify::message::Message;
use refit_service::notify::sink;

use super::super::arguments::{NotifyArguments, NotifyCommand};
use super::super::{Status, print};
use super::Common;
use crate::config::Flags;
use crate::setup;

pub(in super::super) async fn notify(
    common: Common,
    arguments: NotifyArguments,
) -> Result<Status, Diagnostic> {
    let NotifyCommand::Test { name } = arguments.command;
    let config = common.load(Flags::default())?.config;
    let mut sinks = setup::sinks(&config)?;
    if let Some(name) = &name {
        sinks.retain(|sink| sink.name == *name);
    }
    if sinks.is_empty() {
        let names = config.notify.iter().map(|sink| format!("`{}`", sink.name));
        let names: Vec<String> = names.collect();
        return Err(match name {
            Some(name) if !names.is_empty() => {
                Diagnostic::new(format!("there is no sink `{name}`"))
                    .hint(format!("those there are: {}", names.join(", ")))
            }
            _ => Diagnostic::new("nobody is to be told anything")
                .hint("list whom in `[[notify]]`; docs/notifications.md has examples"),
        });
    }
    let client = sink::client()?;
    let message = Message::test(&notify::host());
    let mut status = Status::Done;
    for sink in sinks {
        let began = Instant::now();
        // One attempt only: a person waits, and can try again.
        match sink.post(&client, &message).await {
            Ok(answer) => print(&format!(
                "{}: answered {answer} after {} ms\n",
                sink.name,
                began.elapsed().as_millis()
            )),
            Err(error) => {
                status = Status::SomeFailed;
                let diagnostic = Diagnostic::of(&error);
                print(&format!("{}: {}\n", sink.name, diagnostic.sentence()));
                for hint in diagnostic.hints {
                    print(&format!("  hint: {hint}\n"));
                }
            }
        }
    }
    Ok(status)
}
