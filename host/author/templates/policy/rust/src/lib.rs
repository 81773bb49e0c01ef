//! Containers with a label follow one image, but those that were started a moment ago are left alone.
//!
//! Edit the three lines below, then `matches` and `decide`. `vendor/refit-policy/README.md` lists what else a policy can say.

use refit_policy::{Candidate, Choice, ContainerInfo, Description, NoConfig, Policy, Strategy, Target, export_policy, rule};

/// What the containers follow.
const IMAGE: &str = "ghcr.io/acme/app:latest";
/// Containers with this label follow it, whatever its value.
const LABEL: &str = "acme.follow";
/// Seconds. Who started a container so recently is still at work in it.
const SETTLED_AFTER: u64 = 30 * 60;

struct Matcher;

impl Policy for Matcher {
    // Nothing to set. A struct with `#[derive(Deserialize)]` here is what an operator may put into `[policy.config]`.
    type Config = NoConfig;

    fn describe() -> Description {
        Description {
            // State is kept under this name, and people read it in the log.
            name: "{{name}}".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: format!("containers with the label `{LABEL}` follow `{IMAGE}`"),
            config_schema: String::new(),
        }
    }

    /// The images to follow, by names of your own: `refit refresh --runtime app`.
    fn targets(_: &NoConfig) -> Vec<Target> {
        vec![Target::new("app", IMAGE)]
    }

    /// Whether this container follows this target.
    fn matches(_: &NoConfig, container: &ContainerInfo, _: &Target) -> bool {
        container.label(LABEL).is_some()
    }

    /// What becomes of a container that follows one. By default: what runs and is behind gets the image.
    fn decide(_: &NoConfig, candidate: &Candidate<'_>) -> Choice {
        let choice = candidate.by_default(Strategy::Replace);
        let started = candidate.container.started.unwrap_or_default();
        let age = candidate.now.saturating_sub(started);
        if choice.rule == rule::IMAGE_MOVED && age < SETTLED_AFTER && !candidate.request.force {
            let reason = format!(
                "it is behind `{IMAGE}`, but was started {} min ago",
                age / 60
            );
            return Choice::stale("just-started", reason);
        }
        choice
    }
}

export_policy!(Matcher);

#[cfg(test)]
mod tests {
    use super::*;
    use refit_policy::fake::{self, FakeDocker, FakeHost};

    /// What becomes of a container that has the label and was started so many seconds ago.
    fn decided(seconds: u64, force: bool) -> String {
        let mut host = FakeHost {
            now: 1_000_000,
            ..FakeHost::default()
        };
        let started = host.now - seconds;
        let mut docker = FakeDocker::new()
            .image(IMAGE, "old", "new")
            .container_with("one", IMAGE, |info| {
                info.labels.push((LABEL.into(), "yes".into()));
                info.started = Some(started);
            })
            .container("without-the-label", IMAGE);
        let mut request = fake::request();
        request.force = force;
        let report = fake::refresh::<Matcher>(&mut docker, &mut host, "{}", &request)
            .expect("a refresh is a report");
        assert_eq!(report.decisions.len(), 1, "the other one is none of ours");
        report.decisions[0].rule.clone()
    }

    #[test]
    fn a_container_that_has_settled_gets_its_image() {
        assert_eq!(decided(SETTLED_AFTER, false), "image-moved");
    }

    #[test]
    fn one_that_was_just_started_stays_unless_somebody_insists() {
        assert_eq!(decided(60, false), "just-started");
        assert_eq!(decided(60, true), "image-moved");
    }
}
