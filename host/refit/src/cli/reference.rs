//! Generates the page `docs/commands.md` from the types that parse the command line. `cargo xtask references` writes it.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::arguments::visible;

const HEAD: &str = "\
<!-- Made of the program's own help: `cargo xtask references` writes this page. -->

# Command line

";

/// Generate the whole page.
pub fn commands() -> String {
    let mut program = visible().disable_help_subcommand(true);
    program.build();
    let mut page = HEAD.to_owned();
    let about = program.get_about().map(ToString::to_string);
    push(
        &mut page,
        &format!(
            "{}. stdout is data, stderr is everything else. [operating.md](operating.md) shows the commands at work.",
            prose(&about.unwrap_or_default())
        ),
    );
    push(&mut page, &usage(&program));
    let everywhere: Vec<&Arg> = options(&program).collect();
    push_table(
        &mut page,
        "option, with every command",
        everywhere.iter().copied().map(row),
    );
    if let Some(after) = program.get_after_help() {
        push(&mut page, &prose(&after.to_string()));
    }
    for command in program.get_subcommands() {
        push_command(&mut page, command, 2);
    }
    page.truncate(page.trim_end().len());
    page + "\n"
}

/// Add a command and its subcommands.
fn push_command(page: &mut String, command: &Command, level: usize) {
    /// Deeper headings are too many for a table of contents.
    const LEVEL_MAX: usize = 3;
    let name = full_name(command);
    let hashes = "#".repeat(level.min(LEVEL_MAX));
    push(page, &format!("{hashes} `{name}`"));
    let about = command.get_long_about().or(command.get_about());
    if let Some(about) = about {
        push(page, &prose(&about.to_string()));
    }
    let below = || command.get_subcommands().filter(|it| !it.is_hide_set());
    push_table(
        page,
        "command",
        below().map(|it| {
            let about = it.get_about().map(ToString::to_string);
            (full_name(it), about.unwrap_or_default())
        }),
    );
    // A command that requires a subcommand does nothing itself.
    if !command.is_subcommand_required_set() {
        push(page, &usage(command));
        push_table(page, "argument", command.get_positionals().map(row));
        let own = options(command).filter(|it| !it.is_global_set() && it.get_id() != "help");
        push_table(page, "option", own.map(row));
    }
    for command in below() {
        push_command(page, command, level + 1);
    }
}

fn full_name(command: &Command) -> String {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    name.to_owned()
}

fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let shown = |it: &&Arg| !it.is_positional() && !it.is_hide_set();
    command.get_arguments().filter(shown)
}

/// The usage as a code block, without the word `Usage:`.
fn usage(command: &Command) -> String {
    let text = command.clone().render_usage().to_string();
    let text = text.trim_start_matches("Usage:");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    format!("```\n{}\n```", lines.collect::<Vec<_>>().join("\n"))
}

/// The argument as a user types it, and its `--help` text.
fn row(argument: &Arg) -> (String, String) {
    let short = argument
        .get_short()
        .filter(|_| argument.get_long().is_some());
    let short = short.map_or_else(String::new, |it| format!("-{it}, "));
    let help = argument.get_long_help().or(argument.get_help());
    let mut says = help.map(ToString::to_string).unwrap_or_default();
    let mut add = |text: String| {
        let gap = if says.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        let _ = write!(says, "{gap}[{text}]");
    };
    let valued = argument.get_action().takes_values();
    if let Some(variable) = argument.get_env() {
        add(format!("env: {}", variable.to_string_lossy()));
    }
    let defaults = argument.get_default_values().iter();
    let defaults: Vec<_> = defaults.map(|it| it.to_string_lossy()).collect();
    if valued && !defaults.is_empty() {
        add(format!("default: {}", defaults.join(", ")));
    }
    let possible = argument.get_possible_values();
    let possible: Vec<&str> = possible.iter().map(|it| it.get_name()).collect();
    if valued && !possible.is_empty() {
        add(format!("possible values: {}", possible.join(", ")));
    }
    (format!("{short}{argument}"), says)
}

fn push(page: &mut String, paragraph: &str) {
    page.push_str(paragraph);
    page.push_str("\n\n");
}

fn push_table(page: &mut String, title: &str, rows: impl Iterator<Item = (String, String)>) {
    let rows: Vec<String> = rows
        .map(|(name, says)| {
            let name = name.replace('|', "\\|");
            let says = prose(&says.replace('\n', " ")).replace('|', "\\|");
            format!("| `{name}` | {says} |\n")
        })
        .collect();
    if !rows.is_empty() {
        page.push_str(&format!(
            "| {title} | |\n| --- | --- |\n{}\n",
            rows.concat()
        ));
    }
}

/// Escape angle brackets outside of code, which would start HTML.
fn prose(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts = parts.map(|(at, part)| match at % 2 {
        0 => part.replace('<', "&lt;"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_every_visible_command() {
        let page = commands();
        let mut all = vec![visible()];
        let mut seen = 0;
        while let Some(command) = all.pop() {
            for below in command.get_subcommands() {
                let heading = format!("{}` |", below.get_name());
                let heads = format!("{}`\n", below.get_name());
                assert!(page.contains(&heading) || page.contains(&heads), "{heads}");
                seen += 1;
                all.push(below.clone());
            }
        }
        assert!(seen > 20, "{seen} commands");
        assert!(!page.contains(refit_sandbox::WORKER_SUBCOMMAND));
    }

    #[test]
    fn markup_is_escaped() {
        assert_eq!(prose("an <a> and `<b>`"), "an &lt;a> and `<b>`");
        let mut page = String::new();
        push_table(&mut page, "x", [("a|b".into(), "c|d".into())].into_iter());
        assert!(page.contains("| `a\\|b` | c\\|d |"), "{page}");
    }
}
