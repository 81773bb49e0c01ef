//! `refit policy …`: show, swap and roll back the active policy. Commands on a component without a swap run here (`shipping`); all
//! others call the daemon.

mod shipping;

use base64::Engine as _;
use bytes::Bytes;
use http::Method;
use refit_model::diagnostic::Diagnostic;
use refit_revisions::artifact::signature::Signer;
use refit_revisions::artifact::{Artifact, Source, file};
use refit_sandbox::{CONTRACT_TEXT, limits};
use refit_server::admin_token;
use serde::Deserialize as _;
use serde_json::{Value, json};

#[cfg(feature = "compiler")]
use super::super::arguments::author::AuthorCommand;
use super::super::arguments::{PolicyArguments, PolicyCommand, ServerArguments};
use super::super::remote::{Answer, Ask, Daemon};
use super::super::{Status, print, tell};
#[cfg(feature = "compiler")]
use super::author;
use super::{Common, compare};
use crate::config::{Config, Flags};

const WASM: &str = "application/wasm";
pub(super) const JSON: &str = "application/json";

pub(in super::super) async fn policy(
    common: Common,
    arguments: PolicyArguments,
) -> Result<Status, Diagnostic> {
    let config = match &arguments.command {
        // A policy author may have no platform, or one with a broken configuration.
        #[cfg(feature = "compiler")]
        PolicyCommand::Author(AuthorCommand::New(_) | AuthorCommand::Build(_)) => Config::default(),
        PolicyCommand::Wit => Config::default(),
        _ => common.clone().load(Flags::default())?.config,
    };
    match arguments.command {
        #[cfg(feature = "compiler")]
        PolicyCommand::Author(command) => author::author(&config, command).await,
        PolicyCommand::Swap {
            source,
            policy_config,
            expect,
            shadow,
            allow_older,
            json,
            server,
        } => {
            let mut ask = swap(&source, policy_config.as_deref(), expect)?;
            if allow_older {
                ask.path += "&allow_older=true";
            }
            let daemon = daemon(&config, &server)?;
            match shadow {
                None => print_change(daemon.ask(ask).await?, json),
                Some(after) => {
                    ask.path += &format!("&shadow={after}");
                    compare::print_start(daemon.ask(ask).await?, json)
                }
            }
        }
        PolicyCommand::Shadow { end, json, server } => {
            let mut ask = read("/v1/policy/shadow");
            if end {
                ask.method = Method::DELETE;
            }
            answered(
                daemon(&config, &server)?.ask(ask).await?,
                json,
                compare::trial,
            )
        }
        PolicyCommand::Wit => {
            print(CONTRACT_TEXT);
            Ok(Status::Done)
        }
        PolicyCommand::Record(arguments) => compare::record(common, arguments).await,
        PolicyCommand::Rollback {
            expect,
            json,
            server,
        } => {
            let ask = Ask {
                method: Method::POST,
                path: format!("/v1/policy/rollback?{}", query(&[("by", &caller())])),
                expected: expect,
                body: None,
            };
            print_change(daemon(&config, &server)?.ask(ask).await?, json)
        }
        PolicyCommand::History { json, server } => {
            let ask = read("/v1/policy/history");
            answered(daemon(&config, &server)?.ask(ask).await?, json, history)
        }
        PolicyCommand::Push {
            file,
            reference,
            json,
        } => shipping::push(&config, file, &reference, json).await,
        PolicyCommand::Pull {
            reference,
            output,
            force,
            json,
        } => shipping::pull(&config, reference, output, force, json).await,
        PolicyCommand::Inspect {
            source: None,
            json,
            server,
        } => {
            let ask = read("/v1/policy");
            answered(daemon(&config, &server)?.ask(ask).await?, json, active)
        }
        PolicyCommand::Inspect {
            source: Some(source),
            json,
            ..
        } => {
            let found = shipping::inspect(&config, &source).await?;
            if json {
                print_json(&found);
            } else {
                print(&inspected(&found));
            }
            Ok(Status::Done)
        }
    }
}

pub(super) fn swap(
    source: &Source,
    config: Option<&str>,
    expected: Option<u64>,
) -> Result<Ask<'static>, Diagnostic> {
    let config = config.map(object).transpose()?;
    let mut wanted = match source {
        Source::Registry(_) => json!({ "reference": source }),
        Source::File(path) => {
            let Artifact {
                bytes, signature, ..
            } = file::read(path, limits::COMPONENT_BYTES_MAX)?;
            if signature.is_none() && config.is_none() {
                return Ok(put(source, expected, (WASM, bytes.into())));
            }
            let component = base64::engine::general_purpose::STANDARD.encode(bytes);
            json!({ "component": component, "signature": signature })
        }
    };
    if let Some(config) = config {
        wanted["config"] = config;
    }
    let body = (JSON, Bytes::from(wanted.to_string()));
    Ok(put(source, expected, body))
}

fn put(source: &Source, expected: Option<u64>, body: (&'static str, Bytes)) -> Ask<'static> {
    let origin = source.to_string();
    Ask {
        method: Method::PUT,
        path: format!(
            "/v1/policy?{}",
            query(&[("origin", &origin), ("by", &caller())])
        ),
        expected,
        body: Some(body),
    }
}

pub(super) fn read(path: &str) -> Ask<'static> {
    Ask {
        method: Method::GET,
        path: path.to_owned(),
        expected: None,
        body: None,
    }
}

/// Parse an object on the command line, or a file with one.
pub(super) fn object(text: &str) -> Result<Value, Diagnostic> {
    let typed = text.trim_start().starts_with('{');
    let content = if typed {
        text.to_owned()
    } else {
        std::fs::read_to_string(text).map_err(|error| {
            Diagnostic::new(format!("cannot read the configuration `{text}`"))
                .because(error.to_string())
                .hint("what begins with `{` is taken as JSON, anything else as the name of a file")
        })?
    };
    match serde_json::from_str(&content) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Diagnostic::new(
            "the policy's configuration is no JSON object",
        )),
        Err(error) => {
            Err(Diagnostic::new("the policy's configuration is no JSON").because(error.to_string()))
        }
    }
}

pub(super) fn daemon(config: &Config, server: &ServerArguments) -> Result<Daemon, Diagnostic> {
    let state = config.state_folder();
    // The token of this machine's daemon must not go to another daemon.
    let here = server.server.as_deref().is_none_or(is_here);
    let configured = config.serve.token_file.as_deref();
    let token = admin_token::load_for_command(configured, here.then_some(&*state))
        .map_err(|error| Diagnostic::from(error).hint("or set `ADMIN_TOKEN`"))?;
    match &server.server {
        Some(url) => Daemon::at(url, token),
        None => Ok(Daemon::listening_on(config.serve.listen, token)),
    }
}

/// Whether a daemon's address is this machine, whatever a name server says.
fn is_here(url: &str) -> bool {
    let host = url.parse::<http::Uri>().ok().and_then(|uri| {
        uri.host()
            .map(|host| host.trim_matches(['[', ']']).to_owned())
    });
    host.is_some_and(|host| {
        let address = host.parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|it| it.to_canonical().is_loopback())
    })
}

/// The user at the keyboard, for the record only.
pub(super) fn caller() -> String {
    let name = ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    name.unwrap_or_else(|| "the command line".to_owned())
}

fn query(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .finish()
}

pub(super) fn answered(
    answer: Answer,
    json: bool,
    table: impl Fn(&Value) -> String,
) -> Result<Status, Diagnostic> {
    match answer {
        Answer::Refused(problem) => Err(problem),
        Answer::Done(body) if json => {
            print_json(&body);
            Ok(Status::Done)
        }
        Answer::Done(body) => {
            print(&table(&body));
            Ok(Status::Done)
        }
    }
}

/// A refused swap is a valid answer: the daemon continues with its policy.
fn print_change(answer: Answer, json: bool) -> Result<Status, Diagnostic> {
    if let Answer::Refused(problem) = &answer {
        tell(problem);
        return Ok(Status::SomeFailed);
    }
    answered(answer, json, |body| {
        let policy = &body["policy"];
        let title = format!(
            "{} {}, generation {}",
            text(&policy["name"]),
            text(&policy["version"]),
            policy["generation"]
        );
        if body["changed"] == false {
            return format!("unchanged         {title}: it is in use already\n");
        }
        let mut lines = format!("in use            {title}\n");
        for (key, words) in [("gained", "may now also"), ("lost", "no longer may")] {
            let names = names(&body[key]);
            if !names.is_empty() {
                lines += &format!("{words:<17} {names}\n");
            }
        }
        lines
    })
}

fn history(body: &Value) -> String {
    let mut lines = String::new();
    for record in body["generations"].as_array().into_iter().flatten() {
        let signer = match signer(&record["signer"]) {
            None => String::new(),
            Some(signer) => format!(", signed by {signer}"),
        };
        lines += &format!(
            "{:<5} {:<20} {:<12} {} {}  from {}{signer}, by {}  {}\n",
            record["number"],
            text(&record["at"]).split('.').next().unwrap_or_default(),
            text(&record["how"]),
            text(&record["name"]),
            text(&record["version"]),
            text(&record["origin"]),
            text(&record["by"]),
            text(&record["digest"]),
        );
    }
    lines
}

fn active(body: &Value) -> String {
    let mut lines = inspected(body);
    lines += &format!(
        "generation  {}, {} by {} at {}\n",
        body["generation"],
        text(&body["how"]),
        text(&body["by"]),
        text(&body["activated"])
    );
    lines += &format!("granted     {}\n", names(&body["granted"]));
    lines += &format!("config      {}\n", body["config"]);
    if let Some(previous) = body["previous"].as_object() {
        lines += &format!(
            "previous    generation {}, {} {}\n",
            previous["number"],
            text(&previous["name"]),
            text(&previous["version"])
        );
    }
    for (key, title) in [("problem", "problem"), ("last_refused", "refused")] {
        if body[key].is_object() {
            let causes = body[key]["causes"].as_array().into_iter().flatten();
            let causes: String = causes.map(|cause| format!(": {}", text(cause))).collect();
            lines += &format!("{title:<11} {}{causes}\n", text(&body[key]["error"]));
        }
    }
    lines
}

fn inspected(body: &Value) -> String {
    let mut lines = format!(
        "policy      {} {}\nsummary     {}\ndigest      {}\nfrom        {}\n",
        text(&body["name"]),
        text(&body["version"]),
        text(&body["summary"]),
        text(&body["digest"]),
        text(&body["origin"]),
    );
    if let Some(signer) = signer(&body["signer"]) {
        lines += &format!("signed by   {signer}\n");
    } else if let Some(signature) = body["signature"].as_str() {
        lines += &format!("signature   {signature}\n");
    }
    if let Some(bytes) = body["bytes"].as_u64() {
        lines += &format!("size        {bytes} bytes\n");
    }
    lines += &format!("asks for    {}\n", names(&body["asks"]));
    for (name, functions) in body["imports"].as_object().into_iter().flatten() {
        lines += &format!("imports     {name}: {}\n", names(functions));
    }
    for export in body["exports"].as_array().into_iter().flatten() {
        lines += &format!("exports     {}\n", text(export));
    }
    lines
}

/// The signer, as the daemon or `shipping` reports it.
fn signer(value: &Value) -> Option<String> {
    let signer = Signer::deserialize(value).ok()?;
    Some(signer.to_string())
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn names(list: &Value) -> String {
    let names: Vec<&str> = list.as_array().into_iter().flatten().map(text).collect();
    names.join(", ")
}

pub(super) fn print_json(value: &Value) {
    print(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
}
