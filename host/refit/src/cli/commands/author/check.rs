//! `refit policy check`: the checks of a swap on a component, as a list.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit_model::diagnostic::Diagnostic;
use refit_revisions::load::{self, Passed, Refusal, Source, Stage};
use refit_revisions::permissions::Permissions;
use refit_revisions::start::TrustConfig;
use refit_revisions::{PolicyRevision, artifact};
use refit_sandbox::{CONTRACT, CONTRACT_VERSION, Examined, limits};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::arguments::author::CheckArguments;
use crate::cli::commands::isolation;
use crate::cli::commands::policy::{object, print_json};
use crate::cli::{Status, print};
use crate::config::Config;
use crate::setup;

/// The stages, in the order of a swap.
const STAGES: &[Stage] = &[
    Stage::Fetch,
    Stage::Size,
    Stage::Signature,
    Stage::Parse,
    Stage::Imports,
    Stage::Compile,
    Stage::Link,
    Stage::Describe,
    Stage::Config,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Pass,
    Fail,
    /// A swap would succeed, but the author should know this.
    Warn,
    /// A previous stage has failed.
    Skipped,
}

#[derive(Debug, Serialize)]
struct Line {
    check: String,
    outcome: Outcome,
    detail: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    failure: Option<Diagnostic>,
}

/// The facts that the checks have found.
#[derive(Default)]
struct Seen {
    lines: Vec<Line>,
    examined: Option<Box<Examined>>,
    bytes: usize,
    stage_began: Option<Instant>,
}

pub(in super::super) async fn check(
    config: &Config,
    arguments: CheckArguments,
) -> Result<Status, Diagnostic> {
    let source = super::component_of(arguments.source)?;
    let (seen, outcome) = run_stages(config, &source, arguments.policy_config.as_deref()).await?;
    let failed = outcome.is_err();
    if arguments.json {
        print_json(&seen.json(outcome.as_ref().ok()));
    } else {
        print(&seen.text());
        print(match failed {
            true => "a swap would refuse it\n",
            false => "a swap would take it\n",
        });
    }
    Ok(match failed {
        true => Status::SomeFailed,
        false => Status::Done,
    })
}

/// Print one line, or the list if a check failed, for users who do something else. Returns whether the component passes.
pub(super) async fn print_summary(
    config: &Config,
    source: &artifact::Source,
    policy_config: Option<&str>,
) -> Result<bool, Diagnostic> {
    let (seen, outcome) = run_stages(config, source, policy_config).await?;
    match &outcome {
        Ok(content) => print(&format!("check       {} passes\n", content.policy.title())),
        Err(_) => print(&seen.text()),
    }
    Ok(outcome.is_ok())
}

async fn run_stages(
    config: &Config,
    source: &artifact::Source,
    policy_config: Option<&str>,
) -> Result<(Seen, Result<PolicyRevision, (Stage, Refusal)>), Diagnostic> {
    let policy_config = match policy_config.map(object).transpose()? {
        Some(object) => object.to_string(),
        None => Value::Object(config.policy.config.clone()).to_string(),
    };
    let terms = TrustConfig {
        grants: Arc::new(setup::grants(config)?),
        trust: setup::trust(config)?,
        carrier: setup::carrier(config, setup::credentials(config)?),
    };
    let engine = setup::policy_engine(config, isolation(config))?;
    let mut seen = Seen {
        stage_began: Some(Instant::now()),
        ..Seen::default()
    };
    let mut passed = |stage| seen.passed(stage);
    let source = match source {
        source if super::is_built_in(source) => Source::BuiltIn,
        artifact::Source::File(path) => Source::File(path.clone()),
        artifact::Source::Registry(reference) => Source::Registry(reference.clone()),
    };
    let outcome = load::check(engine, terms, source, &policy_config, &mut passed).await;
    match &outcome {
        Ok(content) => seen.describe(content, &policy_config),
        Err((stage, refusal)) => seen.failed(*stage, Diagnostic::of(refusal)),
    }
    Ok((seen, outcome))
}

impl Seen {
    fn passed(&mut self, passed: Passed) {
        let took = self.stage_began.replace(Instant::now());
        let took = took.map_or(Duration::ZERO, |began| began.elapsed());
        let (stage, detail) = match passed {
            Passed::Fetch { origin } => (Stage::Fetch, origin),
            Passed::Size(bytes) => {
                self.bytes = bytes;
                let most = limits::COMPONENT_BYTES_MAX;
                (
                    Stage::Size,
                    format!("{bytes} bytes, of {most} bytes at most"),
                )
            }
            Passed::Signature(Some(signer)) => (Stage::Signature, format!("by {signer}")),
            Passed::Signature(None) => (Stage::Signature, "nobody has to sign it here".to_owned()),
            Passed::Parse(examined) => {
                let detail = tools(&examined);
                self.examined = Some(examined);
                (Stage::Parse, detail)
            }
            Passed::Imports => (Stage::Imports, self.imports()),
            Passed::Compile => (Stage::Compile, format!("{:.1} s", took.as_secs_f64())),
            Passed::Link => {
                let detail = format!("every function as `{CONTRACT}@{CONTRACT_VERSION}` has it");
                (Stage::Link, detail)
            }
            Passed::Describe(policy) => (
                Stage::Describe,
                format!("{}: {}", policy.title(), policy.summary),
            ),
            Passed::Config => (Stage::Config, String::new()),
        };
        self.line(stage.to_string(), Outcome::Pass, detail);
    }

    fn line(&mut self, check: String, outcome: Outcome, detail: String) {
        self.lines.push(Line {
            check,
            outcome,
            detail,
            failure: None,
        });
    }

    fn failed(&mut self, stage: Stage, failure: Diagnostic) {
        self.lines.push(Line {
            check: stage.to_string(),
            outcome: Outcome::Fail,
            detail: failure.sentence(),
            failure: Some(failure),
        });
        let at = STAGES.iter().position(|it| *it == stage);
        for stage in STAGES.iter().skip(at.map_or(STAGES.len(), |at| at + 1)) {
            // The shape of the configuration is checked first.
            let is_told = self
                .lines
                .iter()
                .any(|line| line.check == stage.to_string());
            if !is_told {
                self.line(stage.to_string(), Outcome::Skipped, String::new());
            }
        }
    }

    /// Add the facts that only a running policy gives, and warnings, which would not prevent a swap.
    fn describe(&mut self, content: &PolicyRevision, config: &str) {
        let policy = &content.policy;
        for line in &mut self.lines {
            if line.check == Stage::Config.to_string() {
                line.detail = format!("it accepts {}", shortened(config));
            }
        }
        let beyond = content.permissions.difference(&content.granted());
        if beyond.is_empty() {
            let asks = content.permissions.to_string();
            self.line("grants".into(), Outcome::Pass, asks);
        } else {
            let detail = format!("no grant covers that it can {beyond}: it will be denied");
            self.line("grants".into(), Outcome::Warn, detail);
        }
        match serde_json::from_str::<Value>(&policy.config_schema) {
            Ok(Value::Object(_)) => {}
            _ if policy.config_schema.is_empty() => {}
            _ => {
                let detail = "what it gives as the JSON Schema of its configuration is none".into();
                self.line("schema".into(), Outcome::Warn, detail);
            }
        }
    }

    /// The imports, for example `docker and host of refit:policy@0.1.0; 12 of WASI`.
    fn imports(&self) -> String {
        let Some(examined) = &self.examined else {
            return String::new();
        };
        let ours = format!("{CONTRACT}/");
        let (contract, wasi): (Vec<_>, Vec<_>) = examined
            .imports
            .keys()
            .partition(|name| name.starts_with(&ours));
        let interfaces = contract.iter().filter_map(|name| {
            let name = name.strip_prefix(&ours)?.split('@').next()?;
            (name != "types").then_some(name)
        });
        let interfaces: Vec<&str> = interfaces.collect();
        format!(
            "{} of `{CONTRACT}@{CONTRACT_VERSION}`; {} interfaces of WASI",
            interfaces.join(", "),
            wasi.len()
        )
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let word = match line.outcome {
                Outcome::Pass => "pass",
                Outcome::Fail => "FAIL",
                Outcome::Warn => "warn",
                Outcome::Skipped => "-",
            };
            let _ = writeln!(
                text,
                "{}",
                format!("{word:<4}  {:<9}  {}", line.check, line.detail).trim_end()
            );
            for hint in line.failure.iter().flat_map(|failure| &failure.hints) {
                let _ = writeln!(text, "      {:<9}  hint: {hint}", "");
            }
        }
        text
    }

    fn json(&self, content: Option<&PolicyRevision>) -> Value {
        let passes = content.is_some();
        let mut json = json!({
            "passes": passes,
            "bytes": self.bytes,
            "contract": format!("{CONTRACT}@{CONTRACT_VERSION}"),
            "checks": self.lines,
        });
        if let Some(examined) = &self.examined {
            json["digest"] = json!(examined.digest);
            json["imports"] = json!(examined.imports);
            json["exports"] = json!(examined.exports);
            json["tools"] = json!(examined.tools);
            json["asks"] = json!(Permissions::from_imports(&examined.imports));
        }
        if let Some(content) = content {
            json["name"] = json!(content.policy.name);
            json["version"] = json!(content.policy.version);
            json["summary"] = json!(content.policy.summary);
            json["signer"] = json!(content.signer);
            json["granted"] = json!(content.granted());
        }
        json
    }
}

/// The tools, for example `a component, built with rustc 1.95.0, wit-bindgen-rust 0.61.0`.
fn tools(examined: &Examined) -> String {
    let named = examined
        .tools
        .iter()
        .map(|tool| match tool.version.as_str() {
            "" => tool.name.clone(),
            // A version such as `1.95.0 (59807616e 2026-04-14)`.
            version => {
                let version = version.split_whitespace().next().unwrap_or_default();
                format!("{} {version}", tool.name)
            }
        });
    let named: Vec<String> = named.collect();
    match named.is_empty() {
        true => "a component".to_owned(),
        false => format!("a component, built with {}", named.join(", ")),
    }
}

fn shortened(config: &str) -> String {
    refit_model::printable::printable(config, 200)
}
