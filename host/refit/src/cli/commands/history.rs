//! `refit history`: the results of refreshes on this machine, by a daemon and by the command line.

use refit_history::{Archive, Id, Outcome, Query, Shown};
use refit_model::diagnostic::Diagnostic;
use refit_model::report::Report;
use refit_model::request::Request;

use super::super::arguments::{HistoryArguments, HistoryCommand};
use super::super::{Status, print, table};
use super::Common;
use crate::config::Flags;

pub(in super::super) fn history(
    common: Common,
    arguments: HistoryArguments,
) -> Result<Status, Diagnostic> {
    let config = common.load(Flags::default())?.config;
    let archive = Archive::new(&config.state_folder());
    if let Some(HistoryCommand::Show { id, json }) = arguments.command {
        return show(&archive, id, json);
    }
    let page = archive.list(&Query {
        limit: arguments.limit,
        before: arguments.before,
        container: arguments.container,
        image: arguments.image,
        outcome: arguments.outcome,
    })?;
    if arguments.json {
        print(&json(&page)?);
        return Ok(Status::Done);
    }
    if page.refreshes.is_empty() {
        print("no refresh is written down that is like this\n");
    }
    for entry in &page.refreshes {
        print(&(table::history_line(entry) + "\n"));
    }
    Ok(Status::Done)
}

fn show(archive: &Archive, id: Id, as_json: bool) -> Result<Status, Diagnostic> {
    let Some(shown) = archive.show(id)? else {
        let error = Diagnostic::new(format!("there is no refresh {id} in the history"));
        return Err(
            error.hint("`refit history` lists those there are; `[history]` says how many are kept")
        );
    };
    let text = if as_json {
        json(&shown)?
    } else {
        format_entry(&shown)
    };
    print(&text);
    Ok(Status::Done)
}

fn json(value: &impl serde::Serialize) -> Result<String, Diagnostic> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Diagnostic::new("cannot write the history").because(error.to_string()))?;
    Ok(text + "\n")
}

/// The facts outside the report, followed by the output of `refit refresh`.
fn format_entry(shown: &Shown) -> String {
    let entry = &shown.entry;
    let policy = &entry.policy;
    let took = entry
        .duration_ms
        .map(|milliseconds| format!(", took {:.1} s", milliseconds as f64 / 1000.0));
    let mut text = format!(
        "refresh   {}, {}\nbegan     {}{}\nasked by  {}, for {}\npolicy    {} {}, generation {}, {}\n\n",
        entry.id,
        table::outcome_word(entry.outcome),
        table::format_time(entry.started),
        took.unwrap_or_default(),
        table::requester_text(entry),
        asked_for(&entry.request),
        policy.name,
        policy.version,
        policy.generation,
        policy.digest,
    );
    if let Some(failure) = &entry.failure {
        text += &format!("{failure}\n");
    }
    // Another version may use unknown words.
    let report = shown.report.clone().map(serde_json::from_value::<Report>);
    text += &match (report, entry.outcome) {
        (Some(Ok(report)), _) => table::format_report(&report),
        (Some(Err(_)), _) => "its report was written by another version of Refit: `--json` prints it\n".to_owned(),
        (None, Outcome::Running) => "it is under way: what came of it is here when it has ended\n".to_owned(),
        (None, Outcome::Interrupted) => {
            "it was begun and has never ended: whoever made it was killed, and what it did until then is not known here\n\n\
             hint: `refit recover` finishes or undoes what it left half done; so does the next refresh\n"
                .to_owned()
        }
        (None, Outcome::Failed | Outcome::Cancelled) => "nothing was done\n".to_owned(),
        (None, Outcome::Done | Outcome::SomeFailed) => "its report was too long to be kept\n".to_owned(),
    };
    text
}

pub(super) fn asked_for(request: &Request) -> String {
    let mut asked = Vec::new();
    let wanted: Vec<&str> = request
        .targets
        .iter()
        .chain(&request.images)
        .map(String::as_str)
        .collect();
    asked.push(match wanted.as_slice() {
        [] => "everything".to_owned(),
        wanted => wanted.join(", "),
    });
    if !request.recreate {
        asked.push("pulls only".to_owned());
    }
    if request.force {
        asked.push("also what is up to date".to_owned());
    }
    asked.join("; ")
}
