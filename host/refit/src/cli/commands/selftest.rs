//! `refit selftest`: run the hostile guests on this machine, and print one line for each as it ends.

use std::sync::Arc;

use refit_author::selftest::{Outcome, Selftest, guests};
use refit_model::diagnostic::Diagnostic;

use super::super::arguments::author::SelftestArguments;
use super::super::{Status, print};

pub(in crate::cli) async fn selftest(arguments: SelftestArguments) -> Result<Status, Diagnostic> {
    let width = guests().iter().map(|guest| guest.name.len()).max();
    let width = width.unwrap_or_default();
    let selftest = Arc::new(Selftest::new().await?);
    let outcomes = selftest
        .run_all(|outcome| {
            if !arguments.json {
                print(&line(outcome, width));
            }
        })
        .await;
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    if arguments.json {
        let text = serde_json::to_string_pretty(&outcomes).unwrap_or_default();
        print(&(text + "\n"));
    } else {
        let passed = outcomes.len() - failed;
        print(&format!(
            "\n{passed} of {} hostile policies came to what they must; after each the built-in policy did its work\n",
            outcomes.len()
        ));
    }
    Ok(if failed == 0 {
        Status::Done
    } else {
        Status::SomeFailed
    })
}

fn line(outcome: &Outcome, width: usize) -> String {
    let Outcome {
        guest,
        got,
        duration_ms,
        passed,
        problems,
        ..
    } = outcome;
    let word = if *passed { "ok    " } else { "FAILED" };
    let mut line = format!("{word}  {guest:<width$}  {got}, {duration_ms} ms\n");
    for problem in problems {
        line.push_str(&format!("        {problem}\n"));
    }
    if let (false, Some(told)) = (passed, &outcome.told) {
        line.push_str(&format!("        {told}\n"));
    }
    line
}
