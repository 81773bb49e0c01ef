//! A canary in every place where a secret can be, a whole day with all of them, and a search through all that was printed, logged,
//! answered, sent and written down.
//!
//! Looked for as they are, and as base64, hexadecimal and URLs would carry them. What is searched: stdout and stderr of every
//! command at `--log trace`, the daemon's log at `trace`, every HTTP answer, every notification, every file of the state folder, and
//! what a policy's author writes down (`policy record`).
//!
//! Where a secret may be: where it was put (the files and variables of this test, the engine's own store, which must have the
//! environment of containers), in the header that it is for (`Authorization` of a notification, and its address), and nowhere else.
//! Hashes of secrets (the admin token's, the webhooks') are in the daemon's memory alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use refit_tests::refit::Daemon;
use refit_tests::registry::{Registry, USER};
use refit_tests::tokens::TokenServer;
use refit_tests::{ContainerSpec, ImageSpec, Refit, World, http, progress, with_world};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::hooks::{package, sign};
use crate::{refit, replaced, until, without_engine};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// One for each place, by the name of the place.
#[derive(Default)]
struct Canaries(BTreeMap<String, String>);

impl Canaries {
    /// A new one. Letters and digits, so that no encoding changes it but those that are looked for.
    fn put(&mut self, place: &str) -> String {
        let canary = format!("canary{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        self.also(place, &canary);
        canary
    }

    /// One that others made.
    fn also(&mut self, place: &str, secret: &str) {
        self.0.insert(place.to_owned(), secret.to_owned());
    }

    /// Everything in which one was found: the place where it was put, and that where it must not be.
    fn found<'a>(&'a self, seen: &'a [Sight]) -> Vec<(&'a str, &'a str)> {
        let mut found = Vec::new();
        for (place, bytes) in seen {
            let text = String::from_utf8_lossy(bytes);
            for (put, canary) in &self.0 {
                if forms(canary)
                    .iter()
                    .any(|form| text.contains(form.as_str()))
                {
                    found.push((put.as_str(), place.as_str()));
                }
            }
        }
        found
    }
}

/// No canary was seen anywhere.
#[track_caller]
fn nothing_of(canaries: &Canaries, seen: &Seen) {
    let seen = seen.0.lock().unwrap();
    let bytes: usize = seen.iter().map(|(_, bytes)| bytes.len()).sum();
    progress(&format!(
        "{} canaries, looked for in {} places, {} KiB",
        canaries.0.len(),
        seen.len(),
        bytes / 1024
    ));
    let found = canaries.found(&seen);
    assert!(
        found.is_empty(),
        "secrets were seen (where each was put, and where it was found): {found:#?}"
    );
}

/// As it is, and as it looks within something longer that was encoded, wherever in there it begins.
fn forms(canary: &str) -> Vec<String> {
    let mut forms = vec![
        canary.to_owned(),
        canary.to_uppercase(),
        canary.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ];
    for before in 0..3 {
        let padded = [&vec![b'x'; before], canary.as_bytes()].concat();
        for alphabet in [&STANDARD, &URL_SAFE] {
            let text = alphabet.encode(&padded);
            // What is at the seams depends on the neighbours too.
            let from = if before == 0 { 0 } else { 4 };
            forms.push(text[from..text.len() - 4].to_owned());
        }
    }
    forms
}

/// Where something could be seen, and what.
type Sight = (String, Vec<u8>);

/// All that anybody could see.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Sight>>>);

impl Seen {
    fn push(&self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.lock().unwrap().push((place.into(), bytes.into()));
    }

    fn files(&self, folder: &Path) -> anyhow::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                count += self.files(&path)?;
            } else {
                self.push(path.display().to_string(), fs::read(&path)?);
                count += 1;
            }
        }
        Ok(count)
    }

    async fn run(&self, refit: &Refit, arguments: &[&str], status: i32) -> anyhow::Result<String> {
        let arguments = [arguments, &["--log", "trace"]].concat();
        let output = refit.run(&arguments).await?;
        let name = format!("`refit {}`", arguments.join(" "));
        self.push(format!("stdout of {name}"), output.stdout.clone());
        self.push(format!("stderr of {name}"), output.stderr.clone());
        // The whole of stderr at `trace` is too long to be read.
        let end: String = output
            .stderr
            .lines()
            .rev()
            .take(20)
            .collect::<Vec<_>>()
            .join("\n");
        assert_eq!(output.status, status, "{name}\n{}\n{end}", output.stdout);
        Ok(output.stdout + &output.stderr)
    }

    async fn ask(
        &self,
        daemon: &Daemon,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> anyhow::Result<http::Answer> {
        let body = body.to_owned();
        let answer = http::send(daemon.address, method, path, None, headers, body.into()).await?;
        let text = format!("{:?}\n{}", answer.headers, answer.text);
        self.push(
            format!("answer to {method} {path}: {}", answer.status),
            text,
        );
        Ok(answer)
    }
}

/// Answers every message by a refusal, and hands out its body: the address and the token are in the head, where they belong.
async fn sink(seen: &Seen) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let seen = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 64 * 1024];
            let mut length = 0;
            // One segment is the head, the next the body; a client that sends less has been heard all the same.
            for _ in 0..2 {
                length += stream.read(&mut request[length..]).await.unwrap_or(0);
                if request[..length].contains(&b'}') {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
            seen.push("a notification", body.unwrap_or_default());
            let answer =
                "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok(address)
}

fn secret_file(refit: Refit, name: &str, content: &str) -> anyhow::Result<Refit> {
    let refit = refit.file(name, content)?;
    let path = refit.home().join(name);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(refit)
}

/// The registries, each with a login in another place.
struct Registries {
    environment: Registry,
    config: Registry,
    helper: Registry,
    file: Registry,
    identity: Registry,
    tokens: TokenServer,
}

impl Registries {
    async fn start(canaries: &mut Canaries) -> anyhow::Result<Self> {
        let tokens = TokenServer::start(&canaries.put("identity token")).await?;
        Ok(Self {
            environment: Registry::start_with_password(&canaries.put("GHCR_TOKEN")).await?,
            config: Registry::start_with_password(&canaries.put("auth of config.json")).await?,
            helper: Registry::start_with_password(&canaries.put("helper's answer")).await?,
            file: Registry::start_with_password(&canaries.put("password_file")).await?,
            identity: Registry::start_trusting(&tokens).await?,
            tokens,
        })
    }

    fn all(&self) -> [&Registry; 5] {
        [
            &self.environment,
            &self.config,
            &self.helper,
            &self.file,
            &self.identity,
        ]
    }
}

/// The program with all secrets at once, for the images of `registry`.
fn with_all(
    w: &World,
    registry: &Registry,
    all: &Registries,
    canaries: &Canaries,
    sink: &str,
) -> anyhow::Result<Refit> {
    let canary = |place: &str| canaries.0[place].as_str();
    let (config, helper, file) = (all.config.host(), all.helper.host(), all.file.host());
    let auth = STANDARD.encode(format!("{USER}:{}", canary("auth of config.json")));
    let docker_config = json!({
        "auths": {
            config: { "auth": auth },
            all.identity.host(): { "auth": "MDAwMDA6", "identitytoken": canary("identity token") },
        },
        "credHelpers": { helper: "canary" },
    });
    let script = format!(
        r#"cat >/dev/null; echo '{{"Username":"{USER}","Secret":"{}"}}'"#,
        canary("helper's answer")
    );
    let mut refit = refit(w, registry, &["hermes"])?
        .set("state_dir", "state")
        .set("grants.environment", json!(["PLAIN_FOR_POLICIES", "API_TOKEN"]))
        .set("credentials.registry", all.environment.host())
        .set("credentials.login", json!([{ "registry": file, "username": USER, "password_file": "password" }]))
        .set("metrics.token_file", "metrics-token")
        .set("hooks.github.secret_file", "github-secret")
        .set("hooks.registry", json!([{ "name": "ours", "secret_file": "registry-secret" }]))
        .set("notify", json!([
            { "name": "told", "kind": "webhook", "url": format!("http://{sink}/{}", canary("notify.url")),
              "token_file": "sink-token", "on": ["failed", "recreated", "held", "behind", "unknown"], "batch_seconds": 0 },
            { "name": "gone", "kind": "slack", "url_file": "sink-url", "batch_seconds": 0 },
        ]))
        .docker_config(&docker_config)?
        .program("docker-credential-canary", &script)?
        .env("GHCR_USER", USER)
        .env("GHCR_TOKEN", canary("GHCR_TOKEN"))
        .env("ADMIN_TOKEN", canary("ADMIN_TOKEN"));
    for (file, place) in [
        ("password", "password_file"),
        ("metrics-token", "metrics.token_file"),
        ("github-secret", "hooks.github.secret_file"),
        ("registry-secret", "hooks.registry.secret_file"),
        ("sink-token", "notify.token_file"),
    ] {
        refit = secret_file(refit, file, canary(place))?;
    }
    // Nobody listens on port 1.
    let gone = format!("http://127.0.0.1:1/{}", canary("notify.url_file"));
    refit = secret_file(refit, "sink-url", &gone)?;
    // Where the tests found an engine, it speaks no TLS, and there is one canary less.
    if let Some(tls) = w.tls() {
        refit = refit
            .env("DOCKER_HOST", &format!("tcp://{}", tls.address))
            .env("DOCKER_TLS_VERIFY", "1")
            .env(
                "DOCKER_CERT_PATH",
                &tls.certificates.ours().display().to_string(),
            );
    }
    Ok(refit)
}

/// What is wrong with a login, a file or the configuration is told without it.
#[tokio::test]
async fn no_secret_is_seen_in_what_is_wrong_with_it() -> anyhow::Result<()> {
    let mut canaries = Canaries::default();
    let seen = Seen::default();
    let refit = without_engine()?.env("GHCR_USER", USER);
    let refit = secret_file(refit, "password", &canaries.put("a file that is not used"))?;
    let lines = canaries.put("GHCR_TOKEN of two lines");
    let wrong = refit.env("GHCR_TOKEN", &format!("{lines}\n{lines}"));
    for command in ["refresh", "serve", "doctor"] {
        let status = if command == "doctor" { 1 } else { 2 };
        seen.run(&wrong, &[command], status).await?;
    }
    let both = wrong.env("GHCR_TOKEN_FILE", "password");
    seen.run(&both, &["refresh"], 2).await?;
    let refit = both
        .without_env("GHCR_TOKEN_FILE")
        .without_env("GHCR_TOKEN");
    let admin = canaries.put("ADMIN_TOKEN of two words");
    let refit = refit.env("ADMIN_TOKEN", &format!("{admin} {admin}"));
    seen.run(&refit, &["serve"], 2).await?;
    let refit = refit.without_env("ADMIN_TOKEN");

    let broken = canaries.put("a login in a config.json that is broken");
    let (auth, host) = (STANDARD.encode(&broken), "ghcr.io");
    for config in [
        format!(r#"{{"auths":{{"{host}":{{"auth":"{broken}%"}}}}}}"#),
        format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#),
        format!(r#"{{"auths":{{"{host}":{{"identitytoken":"{broken}"}}}}"#),
        format!(r#"{{"auths":{{"{host}":{{"identitytoken":["{broken}"]}}}}}}"#),
    ] {
        fs::write(refit.home().join("docker/config.json"), config)?;
        let refit = &refit;
        let images = ["doctor", "--json"];
        seen.run(refit, &images, 1).await?;
    }
    fs::write(refit.home().join("docker/config.json"), "{}")?;

    // Words that came out of place: a syntax error is shown with the line that it is in.
    let written = canaries.put("notify.url in a refit.toml that is broken");
    let url = format!("https://hooks.example/{written}");
    for text in [
        format!("[[notify]]\nname = \"a\"\nkind = \"slack\"\nurl = \"{url}\n"),
        format!("[[notify]]\nname = \"a\"\nkind = \"slack\"\nurl = \"{url}\" x\n"),
        format!("[[notify]]\nname = \"a\"\nkind = \"slack\"\nurl = [\"{url}\"]\n"),
        format!("[[notify]]\nname = \"a\"\nkind = \"slack\"\nurl = \"ftp://{written}\"\n"),
        format!("notify = \"{url}\"\n"),
        format!("notify = [\"{url}\"]\n"),
        format!("[[notify]]\nname = \"a\"\nkind = \"slack\"\nurl_file = [\"{url}\"]\n"),
        format!("[[notify]]\nname = \"a\"\nkind = \"slack\"\nbatch_seconds = \"{url}\"\n"),
        format!("[[notify]]\nname = \"a\"\nkind = \"{url}\"\nurl = \"{url}\"\n"),
    ] {
        fs::write(refit.home().join("broken.toml"), text)?;
        seen.run(&refit, &["serve", "--config", "broken.toml"], 2)
            .await?;
    }
    let engine = canaries.put("a password in DOCKER_HOST");
    for url in ["tcp", "ssh", "ftp"].map(|scheme| format!("{scheme}://me:{engine}@engine.example"))
    {
        seen.run(&refit, &["plan", "--engine", &url], 2).await?;
    }
    nothing_of(&canaries, &seen);
    Ok(())
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "it is one day, in order")]
async fn no_secret_is_seen_anywhere_in_a_whole_day() -> anyhow::Result<()> {
    with_world("canaries", |w| async move {
        let mut canaries = Canaries::default();
        let seen = Seen::default();
        for place in [
            "ADMIN_TOKEN", "metrics.token_file", "hooks.github.secret_file", "hooks.registry.secret_file",
            "notify.url", "notify.url_file", "notify.token_file",
        ] {
            canaries.put(place);
        }
        let registries = Registries::start(&mut canaries).await?;
        if let Some(tls) = w.tls() {
            let key = fs::read_to_string(tls.certificates.ours().join("key.pem"))?;
            let line = key.lines().nth(1).context("a key has lines")?;
            canaries.also("the client's key", &line[..40]);
        } else {
            progress("the engine was there before the tests: there is NO canary in a client's key");
        }
        let sink = sink(&seen).await?;

        // The morning: a refresh from each registry, with the login from each place.
        let mut of_identity = None;
        for (number, registry) in registries.all().into_iter().enumerate() {
            let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
            let name = format!("hermes-{number}");
            let mut container = ContainerSpec::new(&name, &v1.reference);
            for (variable, place) in [
                ("PLAIN", "an environment variable that policies may not read"),
                ("API_TOKEN", "an environment variable that policies may read, and whose name says that it is secret"),
            ] {
                container = container.env(variable, &canaries.put(&format!("{place}, of {number}")));
            }
            let old = w.run(container).await?;
            let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
            let refit = with_all(&w, registry, &registries, &canaries, &sink)?;
            seen.run(&refit, &["plan", "--json"], 0).await?;
            if number == 4 {
                // The daemon is to do this one.
                of_identity = Some((refit, old, v2));
                continue;
            }
            seen.run(&refit, &["refresh", "--json"], 0).await?;
            replaced(&w, &old, &v2).await?;
            // The replacement has what the old one had, or all of this would prove nothing.
            let environment = w.inspect(&old.name).await?.config.and_then(|it| it.env).unwrap_or_default();
            let put = &canaries.0[&format!("an environment variable that policies may not read, of {number}")];
            assert!(environment.contains(&format!("PLAIN={put}")), "{environment:?}");
            seen.run(&refit, &["doctor"], 0).await?;
            seen.run(&refit, &["history", "show", "1"], 0).await?;
            seen.files(&refit.home().join("state"))?;
        }

        // Noon: a login that is refused.
        let wrong = canaries.put("a wrong GHCR_TOKEN");
        let refit = with_all(&w, &registries.environment, &registries, &canaries, &sink)?.env("GHCR_TOKEN", &wrong);
        let told = seen.run(&refit, &["refresh"], 1).await?;
        assert!(told.contains("was sent and refused"), "{told}");
        seen.files(&refit.home().join("state"))?;

        // The afternoon: a daemon, which finds out by itself, holds, and does.
        let (refit, old, v2) = of_identity.context("the last registry")?;
        let refit = refit
            .set("watch.enabled", true)
            .set("watch.interval_seconds", 1)
            .set("watch.jitter_seconds", 0)
            .set("approval.required_for", json!(["schedule", "webhook"]))
            .env("REFIT_LOG", "trace");
        let daemon = refit.serve().await?;
        let admin = format!("Bearer {}", canaries.0["ADMIN_TOKEN"]);
        let admin = [("Authorization", admin.as_str()), JSON];
        until("a refresh that is held", || async {
            let held = seen.ask(&daemon, "GET", "/v1/approvals", &admin, "").await?;
            Ok(held.text.contains("waiting"))
        })
        .await?;
        let body = package("acme", "template", "latest").to_string();
        let signature = sign(&canaries.0["hooks.github.secret_file"], body.as_bytes());
        let registrys = format!("Bearer {}", canaries.0["hooks.registry.secret_file"]);
        let metrics = format!("Bearer {}", canaries.0["metrics.token_file"]);
        let wrong = format!("Bearer {}", canaries.put("a wrong admin token"));
        let basic = format!("Basic {}", STANDARD.encode(format!("{USER}:{}", canaries.put("an admin token as Basic"))));
        let query = format!("/v1/refreshes?token={}", canaries.put("an admin token in a query"));
        let other = canaries.put("an admin token in another header");
        let github = [("X-GitHub-Event", "package"), ("X-Hub-Signature-256", signature.as_str()), JSON];
        let unsigned = [("X-GitHub-Event", "package"), ("X-Hub-Signature-256", "sha256=00"), JSON];
        let request = json!({ "targets": ["hermes"] }).to_string();
        let events = json!({ "events": [] }).to_string();
        for (method, path, headers, body, status) in [
            ("POST", "/v1/hooks/github", github.as_slice(), body.as_str(), 202),
            ("POST", "/v1/hooks/github", unsigned.as_slice(), body.as_str(), 401),
            ("POST", "/v1/hooks/registry", &[("Authorization", registrys.as_str()), JSON], &events, 202),
            ("POST", "/v1/hooks/registry", &[("Authorization", wrong.as_str()), JSON], &events, 401),
            ("GET", "/metrics", &[("Authorization", metrics.as_str())], "", 200),
            ("GET", "/metrics", &[("Authorization", wrong.as_str())], "", 401),
            ("GET", "/v1/watch", &[("Authorization", wrong.as_str())], "", 401),
            ("GET", "/v1/watch", &[("Authorization", basic.as_str())], "", 401),
            ("GET", query.as_str(), &[], "", 401),
            ("GET", "/v1/refreshes", &[("X-Admin-Token", other.as_str())], "", 401),
            ("GET", "/healthz", &[], "", 200),
            ("GET", "/readyz", &[], "", 200),
            ("POST", "/v1/plan", &admin, &request, 200),
            ("GET", "/v1/policy", &admin, "", 200),
            ("GET", "/v1/openapi.json", &admin, "", 200),
            ("GET", "/nowhere", &admin, "", 404),
            ("POST", "/v1/approvals/1/approve", &admin, "", 202),
        ] {
            let answer = seen.ask(&daemon, method, path, headers, body).await?;
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
        }
        until("the container on the new image", || async {
            Ok(w.inspect(&old.name).await.is_ok_and(|it| it.image.as_deref() == Some(v2.id.as_str()))
                && !w.container_exists(&old.id).await?)
        })
        .await?;
        let server = format!("http://{}", daemon.address);
        let ask = "/admin/workspace-images/refresh?runtime=hermes";
        for (method, path) in [
            ("POST", ask), ("GET", "/v1/refreshes"), ("GET", "/v1/refreshes/1"), ("GET", "/v1/refreshes/1/events"),
            ("GET", "/v1/watch"), ("GET", "/v1/approvals/1"), ("GET", "/metrics"), ("GET", "/v1/policy/shadow"),
        ] {
            seen.ask(&daemon, method, path, &admin, "").await?;
        }
        for arguments in [
            ["watch", "status"].as_slice(), &["watch", "check"], &["approvals", "list"], &["approvals", "show", "1"],
            &["policy", "inspect"], &["policy", "history"],
        ] {
            seen.run(&refit, &[arguments, &["--server", &server]].concat(), 0).await?;
        }
        // A reload that fails, and the evening: the identity token is withdrawn.
        registries.tokens.withdraw();
        let last = registries.all().into_iter().next_back().context("the last registry")?;
        w.publish(last, "hermes", ImageSpec::new("v3")).await?;
        let answer = seen.ask(&daemon, "POST", ask, &admin, "").await?;
        assert!(answer.text.contains("hints"), "{}", answer.text);
        daemon.hang_up()?;
        daemon.until_logged("the configuration was read again").await?;
        daemon.terminate()?;
        seen.push("the daemon's log", daemon.ended().await?.expect(0).stderr);

        // What is left to be looked at afterwards.
        for (arguments, status) in [
            (["config", "show"].as_slice(), 0), (&["config", "schema"], 0), (&["history"], 0), (&["history", "show", "1", "--json"], 0),
            (&["recover"], 0), (&["doctor", "--json"], 0), (&["notify", "test"], 1), (&["policy", "record", "--output", "record.json"], 0),
            (&["plan", "--snapshot", "record.json"], 1),
        ] {
            seen.run(&refit, arguments, status).await?;
        }
        seen.push("record.json", fs::read(refit.home().join("record.json"))?);
        let files = seen.files(&refit.home().join("state"))?;
        assert!(files > 2, "the state folder has {files} files");
        // Tokens that were handed out for minutes are as good as a password meanwhile.
        for (number, token) in registries.tokens.issued().into_iter().enumerate() {
            // The first two parts of one say what it is for; who has the last has it.
            canaries.also(&format!("token {number} of the server of tokens"), token.rsplit('.').next().unwrap_or_default());
        }

        let was_notified = |(place, body): &Sight| place == "a notification" && !body.is_empty();
        assert!(seen.0.lock().unwrap().iter().any(was_notified), "nobody was told anything");
        nothing_of(&canaries, &seen);
        Ok(())
    })
    .await
}

/// The search itself finds what is there, in each form in which it looks.
#[test]
fn a_canary_is_found_however_it_is_carried() {
    let mut canaries = Canaries::default();
    let canary = canaries.put("here");
    let login = format!("refit:{canary}");
    let carried = json!({ "username": "refit", "password": canary }).to_string();
    for text in [
        format!("Bearer {canary}"),
        format!("Basic {}", STANDARD.encode(&login)),
        URL_SAFE.encode(&carried),
        URL_SAFE.encode(format!("x{carried}")),
        URL_SAFE.encode(format!("xx{carried}")),
        canary.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ] {
        let seen = [("there".to_owned(), text.clone().into_bytes())];
        assert_eq!(canaries.found(&seen), [("here", "there")], "{text}");
    }
    let seen = [(
        "there".to_owned(),
        Value::from("canary").to_string().into_bytes(),
    )];
    assert!(canaries.found(&seen).is_empty());
}
