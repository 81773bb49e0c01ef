//! Tests a policy that overrides the refresh, with a canary, on the fake engine.

use refit_policy::fake::{self, FakeDocker, FakeHost};
use refit_policy::*;

/// One wave of one container, and the rest only after its success.
struct Canary;

impl Policy for Canary {
    type Config = NoConfig;

    fn describe() -> Description {
        unreachable!("a refresh needs no description")
    }

    fn targets(_: &NoConfig) -> Vec<Target> {
        vec![Target::new("a", "acme/a")]
    }

    fn decide(_: &NoConfig, candidate: &Candidate<'_>) -> Choice {
        // Wrong on purpose: it recreates even if the request forbids it.
        let _ = candidate;
        Choice::recreate(Strategy::Overlap, "always", "because")
    }

    fn refresh(
        config: &NoConfig,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Report, Failure> {
        let mut survey = survey::<Self>(config, request, context)?;
        survey.due.sort_by(|a, b| b.info.name.cmp(&a.info.name));
        let canary = survey.wave(context.docker, 1);
        if canary
            .iter()
            .any(|o| matches!(o, Err(error) if error.is_failed_replacement()))
        {
            survey.hold_back("canary-failed", "the first one did not come up");
        }
        while !survey.wave(context.docker, 2).is_empty() {}
        Ok(survey.into_report())
    }
}

fn rules(report: &Report) -> Vec<(&str, Verdict, &str)> {
    report
        .decisions
        .iter()
        .map(|d| (d.container.as_str(), d.verdict, d.rule.as_str()))
        .collect()
}

#[test]
fn a_canary_that_fails_spares_the_rest() {
    let four = || {
        let docker = FakeDocker::new().image("acme/a", "old", "new");
        let names = ["1", "2", "3", "4"];
        names
            .iter()
            .fold(docker, |docker, name| docker.container(name, "acme/a"))
    };
    let mut docker = four();
    let run = |docker: &mut FakeDocker, request: &Request| {
        fake::refresh::<Canary>(docker, &mut FakeHost::default(), "{}", request).unwrap()
    };
    run(&mut docker, &fake::request());
    assert_eq!(docker.waves(), [vec!["4"], vec!["3", "2"], vec!["1"]]);

    let step = FailedStep {
        step: "prove".into(),
        cause: "unhealthy".into(),
    };
    let mut docker = four().recreate_fails("4", RecreateError::RolledBack(step));
    let report = run(&mut docker, &fake::request());
    assert_eq!(docker.waves(), [["4"]]);
    assert_eq!(rules(&report)[0], ("1", Verdict::Stale, "canary-failed"));
    assert_eq!(rules(&report)[3], ("4", Verdict::Recreate, "always"));

    let mut docker = four();
    let report = run(
        &mut docker,
        &Request {
            recreate: false,
            ..fake::request()
        },
    );
    assert!(
        docker.waves().is_empty(),
        "a careless policy recreates nothing that was not asked for"
    );
    assert_eq!(
        rules(&report)[0],
        ("1", Verdict::Stale, rule::RECREATE_NOT_ASKED)
    );
}
