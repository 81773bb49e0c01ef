//! Recreates every container that it sees with one image, looks at all that a policy can look at, and says what it saw in its reasons:
//! facts that a plan and a refresh have in common if a policy cannot tell them apart.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use refit_policy::{
    ConfigProblem, Container, ContainerInfo, Context, Decision, Description, Failure, Policy,
    PulledImage, RecreateError, Recreated, Recreation, Report, Request, Strategy, Target, Verdict,
    export_policy,
};

/// The configuration.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    image: String,
}

/// The policy.
pub struct PlanDetector;

export_policy!(PlanDetector);

impl Policy for PlanDetector {
    type Config = Config;

    fn describe() -> Description {
        Description {
            name: "plan-detector".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "says what it sees of a refresh, which a plan must show too".to_owned(),
            config_schema: String::new(),
        }
    }

    fn check(_: &Config) -> Vec<ConfigProblem> {
        Vec::new()
    }

    fn targets(config: &Config) -> Vec<Target> {
        vec![Target::new("all", &config.image)]
    }

    fn refresh(config: &Config, _: &Request, context: &mut Context<'_>) -> Result<Report, Failure> {
        let failed = |what: &str| Failure::Other(what.to_owned());
        let (began, wall) = (Instant::now(), context.host.now());
        let pull = |context: &mut Context<'_>| -> Result<PulledImage, Failure> {
            let pulled = context
                .docker
                .pull(std::slice::from_ref(&config.image))
                .pop();
            pulled
                .and_then(Result::ok)
                .ok_or_else(|| failed("the image was not pulled"))
        };
        let image = pull(context)?;
        let list = |context: &mut Context<'_>| {
            let listed = context.docker.containers();
            listed.map_err(|_| failed("the containers were not listed"))
        };
        let old = list(context)?;
        let before = inspect(context, &old);
        let answers = recreate(context, &old, &image);
        let with_old_handle = recreate(context, &old, &image);
        let old_handles = inspect(context, &old);
        let new = list(context)?;
        let after = inspect(context, &new);
        let with_new_handle = recreate(context, &new, &image);
        let again = pull(context)?;

        let mut common = vec![
            format!(
                "image id is digest: {:?}",
                image.digest() == Some(image.id())
            ),
            format!("image id length: {}", image.id().len()),
            format!("same image again: {}", again.id() == image.id()),
            format!("seconds passed: {}", context.host.now() - wall),
            format!("nanoseconds passed: {}", began.elapsed().as_nanos()),
        ];
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        let clock = clock.map_or(0, |clock| clock.as_secs());
        common.push(format!("clocks differ by: {}", clock.abs_diff(wall)));
        context.host.state_set("seen", Some("yes")).ok();
        common.push(format!("state: {:?}", context.host.state_get("seen")));
        common.push(format!("containers: {} then {}", old.len(), new.len()));

        let decisions = old.iter().enumerate().map(|(index, container)| {
            let mut facts = common.clone();
            facts.extend(answer(&answers[index], before[index].as_ref(), &image));
            facts.push(format!(
                "old handle found: {}",
                old_handles[index].is_some()
            ));
            facts.push(format!(
                "old handle again: {}",
                refusal(&with_old_handle[index])
            ));
            let position = new.iter().position(|it| it.name() == container.name());
            if let Some(position) = position {
                let now = after[position].as_ref();
                facts.extend(successor(
                    now,
                    before[index].as_ref(),
                    &answers[index],
                    &image,
                ));
                facts.push(format!(
                    "new handle again: {}",
                    refusal(&with_new_handle[position])
                ));
            }
            Decision {
                container: container.name().to_owned(),
                verdict: Verdict::Recreate,
                rule: "all".to_owned(),
                reason: facts.join("; "),
            }
        });
        Ok(Report {
            targets: vec![Target::new("all", &config.image)],
            decisions: decisions.collect(),
        })
    }
}

fn inspect(context: &mut Context<'_>, containers: &[Container]) -> Vec<Option<ContainerInfo>> {
    let handles: Vec<&Container> = containers.iter().collect();
    let answers = context.docker.inspect(&handles).into_iter();
    answers.map(Result::ok).collect()
}

fn recreate(
    context: &mut Context<'_>,
    containers: &[Container],
    image: &PulledImage,
) -> Vec<Result<Recreated, RecreateError>> {
    let mut answers = Vec::new();
    // One after the other: those that follow a container come after it.
    for container in containers {
        let wave = [Recreation {
            container,
            image,
            strategy: Strategy::Replace,
        }];
        answers.extend(context.docker.recreate(&wave));
    }
    answers
}

fn answer(
    answer: &Result<Recreated, RecreateError>,
    before: Option<&ContainerInfo>,
    image: &PulledImage,
) -> Vec<String> {
    let Ok(recreated) = answer else {
        return vec![format!("not recreated: {}", refusal(answer))];
    };
    vec![
        format!("id length: {:?}", recreated.id.as_ref().map(String::len)),
        format!(
            "same id: {}",
            recreated.id.as_ref() == before.map(|it| &it.id)
        ),
        format!("has the image: {}", recreated.image_id == image.id()),
        format!("has a gap: {:?}", recreated.gap_ms.map(|gap| gap > 0)),
    ]
}

fn successor(
    now: Option<&ContainerInfo>,
    before: Option<&ContainerInfo>,
    answer: &Result<Recreated, RecreateError>,
    image: &PulledImage,
) -> Vec<String> {
    let (Some(now), Some(before)) = (now, before) else {
        return vec!["the new one is not found".to_owned()];
    };
    let id = answer.as_ref().ok().and_then(|it| it.id.as_ref());
    vec![
        format!("runs: {:?}", now.state),
        format!("is the new one: {}", id == Some(&now.id)),
        format!("runs the image: {}", now.image_id == image.id()),
        format!("named by the image: {}", now.image == image.reference()),
        format!("is newer: {}", now.created >= before.created),
        format!("was started: {}", now.started >= before.started),
        format!("networks: {:?}", now.networks),
    ]
}

/// The kind of an answer, without its ids.
fn refusal(answer: &Result<Recreated, RecreateError>) -> String {
    match answer {
        Ok(_) => "recreated".to_owned(),
        Err(RecreateError::ReplacedByOther(successor)) => {
            format!("replaced, current: {}", successor.current)
        }
        Err(RecreateError::Current) => "current".to_owned(),
        Err(RecreateError::Gone) => "gone".to_owned(),
        Err(RecreateError::Busy) => "busy".to_owned(),
        Err(other) => format!("{other:?}"),
    }
}
