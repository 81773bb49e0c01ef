//! Formats scenario results as JUnit XML, which most CI systems show.

use std::io;
use std::path::Path;
use std::time::Duration;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use refit_model::diagnostic::Diagnostic;

use super::test::{Case, failure};

pub(super) fn write(path: &Path, policy: &str, cases: &[Case]) -> Result<(), Diagnostic> {
    let written = report(policy, cases).and_then(|report| std::fs::write(path, report));
    written.map_err(|error| {
        Diagnostic::new(format!("cannot write the report `{}`", path.display()))
            .because(error.to_string())
    })
}

fn report(policy: &str, cases: &[Case]) -> io::Result<Vec<u8>> {
    let failed = cases.iter().filter(|case| !case.ran.passed()).count();
    let tests = cases.len().to_string();
    let failures = failed.to_string();
    let time = seconds(cases.iter().map(|case| case.took).sum());
    let sums = [
        ("tests", tests.as_str()),
        ("failures", failures.as_str()),
        ("time", time.as_str()),
    ];
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let suites = writer.create_element("testsuites").with_attributes(sums);
    suites.write_inner_content(|writer| {
        let suite = writer.create_element("testsuite");
        let suite = suite.with_attribute(("name", policy)).with_attributes(sums);
        suite.write_inner_content(|writer| {
            cases.iter().try_for_each(|case| test_case(writer, case))
        })?;
        Ok(())
    })?;
    let mut report = writer.into_inner();
    report.push(b'\n');
    Ok(report)
}

fn test_case(writer: &mut Writer<Vec<u8>>, case: &Case) -> io::Result<()> {
    let (path, time) = (case.scenario.path.display().to_string(), seconds(case.took));
    let element = writer.create_element("testcase").with_attributes([
        ("name", case.scenario.name.as_str()),
        ("classname", path.as_str()),
        ("time", time.as_str()),
    ]);
    if case.ran.passed() {
        element.write_empty()?;
        return Ok(());
    }
    let mismatches = case.ran.steps.iter().flat_map(|step| &step.mismatches);
    let what: Vec<&str> = mismatches.map(|it| it.what.as_str()).collect();
    let message = match what.is_empty() {
        true => "the policy does not accept its configuration".to_owned(),
        false => what.join(", "),
    };
    element.write_inner_content(|writer| {
        let element = writer.create_element("failure");
        let element = element.with_attribute(("message", message.as_str()));
        element.write_text_content(BytesText::new(&failure(&case.ran)))?;
        Ok(())
    })?;
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}
