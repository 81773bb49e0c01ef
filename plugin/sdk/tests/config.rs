//! Tests the parsing of JSON configurations, and the problems that it reports.

use refit_policy::fake::{self, FakeDocker, FakeHost};
use refit_policy::*;
use serde::Deserialize;

struct Named;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    names: Vec<String>,
    strategy: Strategy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            names: vec!["a".into()],
            strategy: Strategy::Replace,
        }
    }
}

impl Policy for Named {
    type Config = Config;

    fn describe() -> Description {
        Description {
            name: "named".into(),
            version: "0.1.0".into(),
            summary: "for tests".into(),
            config_schema: String::new(),
        }
    }

    fn check(config: &Config) -> Vec<ConfigProblem> {
        let empty = config
            .names
            .iter()
            .enumerate()
            .filter(|(_, name)| name.is_empty());
        empty
            .map(|(at, _)| ConfigProblem::new(format!("names[{at}]"), "must not be empty"))
            .collect()
    }

    fn targets(_: &Config) -> Vec<Target> {
        Vec::new()
    }
}

// The test is that this compiles natively.
export_policy!(Named);

#[test]
fn a_configuration_that_does_not_fit_says_where_and_what() {
    let problems = |json: &str| match configuration::<Named>(json) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(|p| (p.path, p.problem)).collect(),
    };
    let one = |path: &str, problem: &str| vec![(path.to_owned(), problem.to_owned())];
    assert!(problems("{}").is_empty());
    assert!(problems(" \n").is_empty(), "none at all is an empty one");
    assert_eq!(
        problems(r#"{"nmes": []}"#),
        one(
            "nmes",
            "unknown field `nmes`, expected `names` or `strategy`"
        )
    );
    assert_eq!(
        problems(r#"{"names": ["a", 3]}"#),
        one("names[1]", "invalid type: integer `3`, expected a string")
    );
    assert_eq!(
        problems(r#"{"strategy": "restart"}"#),
        one(
            "strategy",
            "unknown variant `restart`, expected one of `replace`, `remove`, `overlap`"
        )
    );
    for json in ["[]", "7", "null", r#""a""#] {
        assert_eq!(problems(json), one("", "must be keys and values"), "{json}");
    }
    assert_eq!(
        problems("{"),
        one(
            "",
            "this is no JSON: EOF while parsing an object at line 1 column 1"
        )
    );
    assert_eq!(
        problems(r#"{"names": ["", "a", ""]}"#),
        [
            one("names[0]", "must not be empty"),
            one("names[2]", "must not be empty")
        ]
        .concat(),
        "all at once"
    );
    let answer = fake::refresh::<Named>(
        &mut FakeDocker::new(),
        &mut FakeHost::default(),
        r#"{"names": [""]}"#,
        &fake::request(),
    );
    assert!(matches!(answer, Err(Failure::InvalidConfig(problems)) if problems.len() == 1));
}

#[test]
fn a_policy_without_settings_refuses_all_of_them() {
    assert_eq!(serde_json::from_str::<NoConfig>("{}").unwrap(), NoConfig {});
    assert!(serde_json::from_str::<NoConfig>(r#"{"names": []}"#).is_err());
}
