//! A disk that is really full, where the history is: refreshes go on, it is told everywhere, and what was not written down is when
//! there is room again. The disk is a file system in memory, so these tests are root's, as a private engine is.

use std::fs;
use std::path::Path;

use refit_tests::disk::Disk;
use refit_tests::{ImageSpec, Refit, registry, with_world};
use serde_json::{Value, json};

use crate::{behind, refit, replaced};

fn disk(refit: &Refit, folder: &str) -> anyhow::Result<Disk> {
    Disk::mount(refit.home().join("state").join(folder), 1 << 20)
}

async fn history(refit: &Refit) -> anyhow::Result<Vec<(Value, Value)>> {
    let page = refit.run(&["history", "--json"]).await?.expect(0).json();
    let entries = page["refreshes"].as_array().cloned().unwrap_or_default();
    let told = entries.iter();
    Ok(told
        .map(|it| (it["outcome"].clone(), it["summary"]["recreated"].clone()))
        .collect())
}

fn has_room(path: &Path) -> bool {
    fs::write(path.join("probe"), vec![0; 64 << 10]).is_ok()
        && fs::remove_file(path.join("probe")).is_ok()
}

#[tokio::test]
async fn a_full_disk_stops_no_refresh_is_told_and_what_it_cost_is_written_down_later()
-> anyhow::Result<()> {
    with_world("full disk", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?.set("state_dir", "state");
        let disk = disk(&refit, "history")?;
        let daemon = refit.serve().await?;
        assert_eq!(daemon.refresh("").await?.status, 200);
        replaced(&w, &hermes, &v2).await?;
        assert_eq!(history(&refit).await?, [(json!("done"), json!(1))]);

        disk.fill()?;
        let hermes = w.inspect(&hermes.name).await?;
        let v3 = w.publish(registry, "hermes", ImageSpec::new("v3")).await?;
        let answer = daemon.refresh("").await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let recreation = &answer.json()?["report"]["containers"][0]["recreation"];
        assert_eq!(recreation["outcome"], "recreated");
        assert_eq!(recreation["old_id"], json!(hermes.id));
        assert_eq!(recreation["to_image_id"], v3.id);
        let page = daemon.request("GET", "/v1/refreshes").await?.json()?;
        let problem = page["problem"].to_string();
        assert!(
            problem.contains("is full") && problem.contains("free some space"),
            "{page:#}"
        );
        let output = refit.run(&["doctor"]).await?.expect(1);
        assert!(output.stdout.contains("FAIL  history"), "{output}");
        assert!(output.stdout.contains("free some space"), "{output}");
        // A process that comes to it now, and ends before there is room.
        let output = refit.run(&["refresh"]).await?.expect(0);
        output
            .says("refreshes are not written down")
            .says("is full");
        assert_eq!(history(&refit).await?.len(), 1, "who looks still can");

        disk.make_room()?;
        assert!(has_room(&disk.at));
        assert_eq!(daemon.refresh("").await?.status, 200);
        // The newest is the one before whose beginning there was room.
        let told = history(&refit).await?;
        assert_eq!(
            told,
            [
                (json!("done"), json!(0)),
                (json!("done"), json!(1)),
                (json!("done"), json!(1))
            ],
            "what the daemon could not write down it has now"
        );
        let page = daemon.request("GET", "/v1/refreshes").await?.json()?;
        assert_eq!(page["problem"], Value::Null, "{page:#}");
        let output = refit.run(&["doctor"]).await?.expect(0);
        assert!(output.stdout.contains("ok    history"), "{output}");
        daemon
            .until_logged("refreshes are written down again")
            .await?;
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_daemon_that_starts_on_a_full_disk_writes_down_what_it_did_when_there_is_room()
-> anyhow::Result<()> {
    with_world("full before", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?.set("state_dir", "state");
        let disk = disk(&refit, "history")?;
        disk.fill()?;
        let daemon = refit.serve().await?;
        daemon
            .until_logged("refreshes are not written down")
            .await?;
        assert_eq!(daemon.refresh("").await?.status, 200);
        replaced(&w, &hermes, &v2).await?;
        disk.make_room()?;
        assert_eq!(daemon.refresh("").await?.status, 200);
        let told = history(&refit).await?;
        assert_eq!(told, [(json!("done"), json!(0)), (json!("done"), json!(1))]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_approval_that_finds_no_room_is_not_held_and_one_that_waits_is_not_lost()
-> anyhow::Result<()> {
    with_world("full of approvals", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?.set("state_dir", "state");
        let disk = disk(&refit, "approvals")?;
        let daemon = refit.serve().await?;
        let ask = |force: bool| {
            let body = json!({ "force": force }).to_string();
            let headers = [("Content-Type", "application/json")];
            let daemon = &daemon;
            async move { daemon.send("POST", "/v1/approvals", &headers, body).await }
        };
        assert_eq!(ask(false).await?.status, 201);
        disk.fill()?;
        for refused in [
            ask(true).await?,
            daemon.request("POST", "/v1/approvals/1/approve").await?,
        ] {
            assert_eq!(refused.status, 503, "{}", refused.text);
            assert_eq!(refused.json()?["code"], "approvals-unavailable");
        }
        let list = daemon.request("GET", "/v1/approvals").await?.json()?;
        assert_eq!(list["approvals"][0]["state"], "waiting");
        assert!(
            list["problem"].to_string().contains("No space left"),
            "{list:#}"
        );
        crate::untouched(&w, &hermes).await?;
        disk.make_room()?;
        assert_eq!(
            daemon
                .request("POST", "/v1/approvals/1/approve")
                .await?
                .status,
            202
        );
        crate::until("that it is replaced", || async {
            let now = w.inspect(&hermes.name).await?;
            Ok(now.image.as_deref() == Some(v2.id.as_str()))
        })
        .await?;
        let list = daemon.request("GET", "/v1/approvals").await?.json()?;
        assert_eq!(list["problem"], Value::Null);
        Ok(())
    })
    .await
}
