//! What is written down of refreshes: the same for who asks the daemon and who asks on the command line, and still there when a
//! daemon was killed, it cannot be written, or the file is damaged.

use std::fs;
use std::path::PathBuf;

use refit_tests::registry::{self, PASSWORD, USER};
use refit_tests::{ContainerSpec, ImageSpec, Proxy, Refit, with_world};
use serde_json::{Value, json};

use crate::{behind, refit, replaced, until, untouched, without_engine};

/// The entries, the newest first.
async fn entries(refit: &Refit, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let arguments = [&["history", "--json"], arguments].concat();
    let page = refit.run(&arguments).await?.expect(0).json();
    Ok(page["refreshes"].as_array().cloned().unwrap_or_default())
}

fn file(refit: &Refit) -> PathBuf {
    refit.home().join("state/history/refreshes.db")
}

#[tokio::test]
async fn the_daemon_and_the_command_line_write_into_one_history() -> anyhow::Result<()> {
    with_world("one history", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .env("USER", "ana");
        let daemon = refit.serve().await?;
        let answer = daemon.refresh("").await?.json()?;
        replaced(&w, &hermes, &v2).await?;
        daemon.request("POST", "/v1/plan").await?;
        refit.run(&["refresh"]).await?.expect(0);
        let answered = daemon.refresh("?runtime=nope").await?;
        assert_eq!(answered.status, 400);

        let seen = daemon.request("GET", "/v1/refreshes").await?.json()?;
        let typed = refit.run(&["history", "--json"]).await?.expect(0).json();
        assert_eq!(seen, typed);
        let told: Vec<_> = entries(&refit, &[])
            .await?
            .iter()
            .map(|it| {
                format!(
                    "{} {} {} {}",
                    it["id"], it["outcome"], it["request"]["trigger"], it["by"]
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                r#"3 "failed" "api" null"#,
                r#"2 "done" "operator" "ana""#,
                r#"1 "done" "api" null"#
            ],
            "and no plan"
        );
        let shown = daemon.request("GET", "/v1/refreshes/1").await?.json()?;
        assert_eq!(
            shown["report"], answer["report"],
            "it is kept as it was told"
        );
        assert_eq!(
            shown,
            refit.run(&["history", "show", "1", "--json"]).await?.json()
        );

        let of_hermes = entries(&refit, &["--container", &hermes.name]).await?;
        let outcomes: Vec<_> = of_hermes
            .iter()
            .map(|it| &it["container"]["outcome"])
            .collect();
        assert_eq!(outcomes, ["current", "recreated"]);
        let path = format!("/v1/refreshes?limit=1&container={}", hermes.name);
        let page = daemon.request("GET", &path).await?.json()?;
        assert_eq!(
            (&page["refreshes"][0]["id"], &page["next"]),
            (&2.into(), &2.into())
        );
        let page = daemon
            .request("GET", &format!("{path}&before=2"))
            .await?
            .json()?;
        assert_eq!(
            (&page["refreshes"][0]["id"], &page["next"]),
            (&1.into(), &Value::Null)
        );
        for (path, status) in [
            ("/v1/refreshes?limit=0", 400),
            ("/v1/refreshes?outcome=good", 400),
            ("/v1/refreshes?colour=red", 400),
            ("/v1/refreshes/4", 404),
            ("/v1/refreshes/x", 404),
        ] {
            assert_eq!(daemon.request("GET", path).await?.status, status, "{path}");
        }
        let output = refit.run(&["history", "show", "4"]).await?.expect(2);
        output.says("there is no refresh 4");

        let output = refit.run(&["history", "show", "1"]).await?.expect(0);
        let (head, report) = output.stdout.split_once("\n\n").unwrap_or_default();
        for told in [
            "refresh   1, done",
            "asked by  api, for everything",
            "workspace 0.1.0, generation 1, sha256:",
        ] {
            assert!(head.contains(told), "{output}");
        }
        assert!(
            report.contains(&format!("recreated         {}  ", hermes.name)),
            "{output}"
        );
        assert!(
            report.contains("images: 1 pulled; containers: 1 recreated (done in "),
            "{output}"
        );
        let output = refit.run(&["history"]).await?.expect(0);
        let lines: Vec<_> = output.stdout.lines().collect();
        let [failed, nothing, recreated] = lines.as_slice() else {
            panic!("three lines: {output}");
        };
        assert!(
            failed.starts_with("3 ") && failed.ends_with("unknown target: nope"),
            "{output}"
        );
        assert!(
            nothing.contains("operator ana") && nothing.ends_with("1 current"),
            "{output}"
        );
        assert!(recreated.ends_with("1 recreated, 1 pulled"), "{output}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_refresh_whose_daemon_was_killed_is_interrupted() -> anyhow::Result<()> {
    with_world("killed in a refresh", |w| async move {
        let registry = registry::open().await?;
        behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let stop = proxy.hold("POST", "/stop");
        let refit = refit(&w, registry, &["hermes"])?.set("state_dir", "state");
        let docker_host = w.docker_host().to_owned();
        let refit = refit.env("DOCKER_HOST", &proxy.docker_host());
        let daemon = refit.serve().await?;
        {
            let asking = daemon.refresh("");
            tokio::select! {
                waiting = stop.until_waiting(1) => waiting?,
                answer = asking => panic!("it did not wait: {answer:?}"),
            }
        }
        let seen = entries(&refit, &[]).await?;
        assert_eq!(seen[0]["outcome"], "running");
        drop(daemon);
        until("that it was interrupted", || async {
            Ok(entries(&refit, &["--outcome", "interrupted"]).await?.len() == 1)
        })
        .await?;
        let output = refit.run(&["history", "show", "1"]).await?.expect(0);
        assert!(output.stdout.contains("refit recover"), "{output}");
        stop.release();
        let refit = refit.env("DOCKER_HOST", &docker_host);
        refit.run(&["recover"]).await?;
        refit.run(&["refresh"]).await?;
        let seen = entries(&refit, &[]).await?;
        let outcomes: Vec<_> = seen.iter().map(|it| &it["outcome"]).collect();
        assert_eq!(outcomes.len(), 2);
        assert_eq!(outcomes[1], "interrupted");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_refreshes_at_once_are_two_rows_in_one_process_and_in_two() -> anyhow::Result<()> {
    with_world("rows at once", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let (crewai, crewai_v2) = behind(&w, registry, "crewai").await?;
        let refit = refit(&w, registry, &["hermes", "crewai"])?
            .set("state_dir", "state")
            .env("USER", "ana");
        let daemon = refit.serve().await?;
        let typed = || refit.run(&["refresh", "--runtime", "crewai"]);
        let (a, b, c, d) = tokio::join!(
            daemon.refresh("?runtime=hermes"),
            daemon.refresh("?runtime=hermes"),
            typed(),
            typed()
        );
        for answer in [a?, b?] {
            assert_eq!(answer.status, 200);
        }
        // Of two that come to one container at once, one does it and may tell the other that it is busy.
        for output in [c?, d?] {
            assert!((0..=1).contains(&output.status), "{output}");
        }
        replaced(&w, &hermes, &v2).await?;
        replaced(&w, &crewai, &crewai_v2).await?;
        let rows = entries(&refit, &[]).await?;
        let mut told: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row["request"]["targets"][0].to_string(),
                    row["by"].to_string(),
                )
            })
            .collect();
        told.sort();
        let (typed, sent) = (
            (r#""crewai""#.to_owned(), r#""ana""#.to_owned()),
            (r#""hermes""#.to_owned(), "null".to_owned()),
        );
        assert_eq!(told, [typed.clone(), typed, sent.clone(), sent]);
        let ids: Vec<_> = rows.iter().map(|row| row["id"].as_i64()).collect();
        assert_eq!(ids, [Some(4), Some(3), Some(2), Some(1)]);
        for row in &rows {
            assert!(
                ["done", "some-failed"].contains(&row["outcome"].as_str().unwrap_or_default()),
                "{row}"
            );
            assert!(row["policy"]["digest"].is_string() && row["policy"]["generation"].is_number());
            let path = format!("/v1/refreshes/{}", row["id"]);
            let shown = daemon.request("GET", &path).await?.json()?;
            assert_eq!(
                shown["report"]["request"], row["request"],
                "no report is another's"
            );
        }
        let done = rows.iter().map(|row| row["summary"]["recreated"].as_u64());
        assert_eq!(
            done.map(Option::unwrap_or_default).sum::<u64>(),
            2,
            "each once"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_damaged_history_is_moved_aside_and_stops_no_refresh() -> anyhow::Result<()> {
    with_world("damaged history", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?.set("state_dir", "state");
        let refit = refit.file(
            "state/history/refreshes.db",
            "nothing that SQLite knows".repeat(100),
        )?;
        let output = refit.run(&["doctor"]).await?.expect(1);
        assert!(output.stdout.contains("FAIL  history"), "{output}");
        refit.run(&["history"]).await?.expect(2).says("is damaged");
        let output = refit.run(&["refresh"]).await?.expect(0);
        output.says("was damaged, and is kept as");
        replaced(&w, &hermes, &v2).await?;
        assert_eq!(entries(&refit, &[]).await?[0]["outcome"], "done");
        let output = refit.run(&["doctor"]).await?.expect(0);
        assert!(
            output.stdout.contains("a damaged one was kept as"),
            "{output}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_history_that_cannot_be_written_stops_no_refresh_and_is_told() -> anyhow::Result<()> {
    with_world("no history", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        // A file where its folder should be: also for root there is no way to write below it.
        let refit = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .file("state/history", "")?;
        let output = refit.run(&["refresh"]).await?.expect(0);
        output.says("refreshes are not written down");
        replaced(&w, &hermes, &v2).await?;
        let output = refit.run(&["doctor"]).await?.expect(1);
        assert!(output.stdout.contains("FAIL  history"), "{output}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_newer_history_is_left_alone() -> anyhow::Result<()> {
    let refit = without_engine()?.set("state_dir", "state");
    // The runtime is unknown, so no engine is asked; it is written down all the same.
    refit
        .run(&["refresh", "--runtime", "nope"])
        .await?
        .expect(2);
    assert_eq!(entries(&refit, &[]).await?[0]["outcome"], "failed");
    // `user_version`, big-endian, at byte 60 of the first page: https://www.sqlite.org/fileformat.html#the_database_header
    let mut bytes = fs::read(file(&refit))?;
    bytes[60..64].copy_from_slice(&99u32.to_be_bytes());
    fs::write(file(&refit), &bytes)?;
    let output = refit
        .run(&["refresh", "--runtime", "nope"])
        .await?
        .expect(2);
    output
        .says("was written by a newer Refit")
        .says("unknown target: nope");
    refit
        .run(&["history"])
        .await?
        .expect(2)
        .says("its schema is 99");
    Ok(())
}

#[tokio::test]
async fn where_none_is_kept_none_is_written() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("state_dir", "state")
        .set("history.keep", 0);
    refit
        .run(&["refresh", "--runtime", "nope"])
        .await?
        .expect(2);
    assert!(!file(&refit).exists());
    let daemon = refit.serve().await?;
    let listed = daemon.request("GET", "/v1/refreshes").await?.json()?;
    assert_eq!(
        listed,
        json!({ "refreshes": [], "problem": { "error": "no history is kept", "hints": ["`[history] keep` is 0"] } })
    );
    Ok(())
}

#[tokio::test]
async fn no_login_is_in_it() -> anyhow::Result<()> {
    with_world("secrets in the history", |w| async move {
        let registry = registry::private().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let secret = "a-variable-not-to-be-seen";
        let container = w
            .run(ContainerSpec::new("hermes", &v1.reference).env("API_KEY", secret))
            .await?;
        for password in [PASSWORD, "also-not-to-be-seen"] {
            let refit = refit(&w, registry, &["hermes"])?
                .set("state_dir", "state")
                .secret(secret)
                .set("credentials.registry", registry.host())
                .env("GHCR_USER", USER)
                .env("GHCR_TOKEN", password)
                .env("ADMIN_TOKEN", "admin-not-to-be-seen");
            let daemon = refit.serve().await?;
            daemon.refresh("").await?;
            daemon.terminate()?;
            daemon.ended().await?.expect(0);
            assert_eq!(entries(&refit, &[]).await?.len(), 1);
            for entry in fs::read_dir(refit.home().join("state/history"))? {
                let path = entry?.path();
                if path.is_dir() {
                    continue;
                }
                let bytes = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                for canary in [PASSWORD, "not-to-be-seen"] {
                    assert!(!bytes.contains(canary), "{} has `{canary}`", path.display());
                }
            }
        }
        untouched(&w, &container).await
    })
    .await
}
