//! The hostile guests, with the expected result of each and the limits that it exceeds. The first line of a guest's file says what
//! it tries (`host/author/selftest/guests`).

use refit_sandbox::limits::{COMPONENT_BYTES_MAX, Limit};
use refit_sandbox::{DEFAULT_POLICY, PolicyErrorKind as Kind, Task};

use super::RECREATES_MAX;

// `host/author/selftest/build.rs` generates `BUILT`: name, attempt, component.
include!(concat!(env!("OUT_DIR"), "/selftest.rs"));

/// The expected result of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The component does not load, with this error.
    Refused(Kind),
    /// The host stops the guest during this call.
    Stopped(Task, Kind),
    /// The host limits the guest, and its report is valid. Some guests trap themselves if they get more than allowed.
    Held,
    /// Like `Held`, and the host drops or cuts part of the guest's text.
    Cut,
    /// The guest itself reports that it cannot make the refresh.
    Fails,
}

/// The time limits of a guest. Everything else is as in production for all guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The production time limits.
    Full,
    /// A fraction of a second of computing time, so that a dozen endless guests take seconds, not minutes.
    Short,
}

#[derive(Clone, Debug)]
pub struct Guest {
    pub name: &'static str,
    /// What the guest tries: a sentence without a full stop.
    pub tries: &'static str,
    pub crosses: &'static [Limit],
    pub ending: Ending,
    /// The number of containers that the guest may recreate before it ends.
    pub recreates: usize,
    pub pace: Pace,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Built(&'static [u8]),
    /// Bytes that are not a component, or too large to embed in the program.
    Made(fn() -> Vec<u8>),
}

impl Guest {
    /// Whether the guest takes seconds. The others take milliseconds.
    pub(super) fn is_slow(&self) -> bool {
        self.pace == Pace::Full && self.ending == stopped(Kind::Interrupted)
    }

    pub fn bytes(&self) -> Vec<u8> {
        match self.source {
            Source::Built(bytes) => bytes.to_vec(),
            Source::Made(make) => make(),
        }
    }
}

/// The component of the guest with this name.
pub fn component(name: &str) -> Option<Vec<u8>> {
    let guest = guests().into_iter().find(|guest| guest.name == name)?;
    Some(guest.bytes())
}

/// All guests, in the order in which the selftest runs and shows them.
pub fn guests() -> Vec<Guest> {
    let built = EXPECTED.iter().map(|&(name, crosses, ending)| {
        let found = BUILT.iter().find(|(built, ..)| *built == name);
        let (_, tries, bytes) = found.expect("a test compares the two tables");
        Guest {
            name,
            tries,
            crosses,
            ending,
            recreates: match name {
                "recreates-more-than-it-may" => RECREATES_MAX,
                "recreates-and-panics" | "recreates-and-loops" => 1,
                _ => 0,
            },
            pace: match (name, ending) {
                ("loops-for-ten-seconds", _) => Pace::Full,
                (_, Ending::Stopped(_, Kind::Interrupted | Kind::TimedOut)) => Pace::Short,
                _ => Pace::Full,
            },
            source: Source::Built(bytes),
        }
    });
    let made = MADE
        .iter()
        .map(|&(name, tries, crosses, kind, make)| Guest {
            name,
            tries,
            crosses,
            ending: Ending::Refused(kind),
            recreates: 0,
            pace: Pace::Full,
            source: Source::Made(make),
        });
    built.chain(made).collect()
}

use Ending::{Cut, Fails, Held, Refused, Stopped};
use Task::{CheckConfig, Describe, Refresh};

/// The host stops the guest during a refresh.
const fn stopped(kind: Kind) -> Ending {
    Stopped(Refresh, kind)
}

#[rustfmt::skip]
const EXPECTED: &[(&str, &[Limit], Ending)] = &[
    // Time.
    ("loops-for-ten-seconds", &[Limit::Compute], stopped(Kind::Interrupted)),
    ("loops-in-refresh", &[Limit::Compute], stopped(Kind::Interrupted)),
    ("loops-in-describe", &[Limit::Compute], Stopped(Describe, Kind::Interrupted)),
    ("loops-in-validate-config", &[Limit::Compute], Stopped(CheckConfig, Kind::Interrupted)),
    ("loops-in-start", &[Limit::Compute], Stopped(Describe, Kind::Interrupted)),
    ("loops-in-realloc", &[Limit::Compute], Stopped(CheckConfig, Kind::Interrupted)),
    ("loops-after-return", &[Limit::Compute], Stopped(Describe, Kind::Interrupted)),
    ("loops-in-a-destructor", &[Limit::Compute], stopped(Kind::Interrupted)),
    ("fills-memory-for-ever", &[Limit::Compute], stopped(Kind::Interrupted)),
    ("recreates-and-loops", &[Limit::Compute], stopped(Kind::Interrupted)),
    ("waits-for-hours", &[Limit::Refresh], stopped(Kind::TimedOut)),
    ("waits-in-describe", &[Limit::Probe], Stopped(Describe, Kind::TimedOut)),
    // Memory.
    ("recurses", &[Limit::Stack], stopped(Kind::Exceeded)),
    ("recurses-in-start", &[Limit::Stack], Stopped(Describe, Kind::Exceeded)),
    ("grows-its-memory", &[Limit::Memory], stopped(Kind::Exceeded)),
    ("begins-with-too-much-memory", &[Limit::Memory], Stopped(Describe, Kind::Exceeded)),
    ("splits-its-memory", &[Limit::Memory], Stopped(Describe, Kind::Exceeded)),
    ("has-nine-memories", &[Limit::Memories], Stopped(Describe, Kind::Unstartable)),
    ("has-seventeen-tables", &[Limit::Tables], Stopped(Describe, Kind::Unstartable)),
    ("grows-a-table", &[Limit::TableElements], stopped(Kind::Exceeded)),
    ("has-a-hundred-instances", &[Limit::Instances], Stopped(Describe, Kind::Unstartable)),
    // Amounts.
    ("logs-a-line-of-33-mib", &[Limit::HostcallBytes], stopped(Kind::Broke)),
    ("names-one-text-many-times", &[Limit::HostcallBytes], stopped(Kind::Broke)),
    ("answers-with-33-mib", &[Limit::HostcallBytes], stopped(Kind::Broke)),
    ("logs-a-mebibyte-for-ever", &[Limit::HostBytes], stopped(Kind::Exceeded)),
    ("asks-the-time-for-ever", &[Limit::HostCalls], stopped(Kind::Exceeded)),
    ("reads-its-state-for-ever", &[Limit::HostCalls], stopped(Kind::Exceeded)),
    ("asks-for-a-name-for-ever", &[Limit::HostCalls], stopped(Kind::Exceeded)),
    ("lists-for-ever", &[Limit::Lists], Held),
    ("keeps-every-handle", &[Limit::Handles], stopped(Kind::Exceeded)),
    ("makes-handles-of-its-own", &[Limit::Handles], stopped(Kind::Broke)),
    ("pulls-a-huge-batch", &[Limit::Batch], stopped(Kind::Exceeded)),
    ("inspects-for-ever", &[Limit::Inspects], Held),
    ("pulls-for-ever", &[Limit::Pulls], Held),
    ("recreates-more-than-it-may", &[Limit::Recreates], Held),
    ("asks-for-much-randomness", &[Limit::RandomBytes], stopped(Kind::Broke)),
    // Messages and stored state.
    ("logs-for-ever", &[Limit::LogLines], Cut),
    ("logs-long-lines", &[Limit::LogLineBytes, Limit::LogBytes], Cut),
    ("prints-for-ever", &[Limit::OutputBytes], Cut),
    ("writes-its-state-for-ever", &[Limit::StateWrites], Held),
    ("keeps-too-many-values", &[Limit::StateKeys], Held),
    ("keeps-a-long-key", &[Limit::StateKeyBytes], Held),
    ("keeps-a-large-value", &[Limit::StateValueBytes], Held),
    ("decides-without-an-end", &[Limit::ReportEntries], stopped(Kind::BadAnswer)),
    ("explains-without-an-end", &[Limit::TextBytes], Held),
    ("complains-without-an-end", &[Limit::Problems], Fails),
    ("has-a-long-name", &[Limit::NameBytes], Refused(Kind::BadAnswer)),
    ("has-a-path-for-a-name", &[], Refused(Kind::BadAnswer)),
    ("has-a-huge-schema", &[Limit::SchemaBytes], Refused(Kind::BadAnswer)),
    ("dresses-up-its-answer", &[], Held),
    // Panics.
    ("panics", &[], stopped(Kind::Trapped)),
    ("panics-deep-down", &[Limit::BacktraceFrames, Limit::ShownFrames], stopped(Kind::Trapped)),
    ("panics-under-a-false-name", &[], stopped(Kind::Trapped)),
    ("reads-beyond-its-memory", &[], stopped(Kind::Trapped)),
    ("divides-by-zero", &[], stopped(Kind::Trapped)),
    ("calls-nothing", &[], stopped(Kind::Trapped)),
    ("exits", &[], stopped(Kind::Exited)),
    ("recreates-and-panics", &[], stopped(Kind::Trapped)),
    // The contract.
    ("forges-a-handle", &[], stopped(Kind::Broke)),
    ("forges-a-handle-in-a-wave", &[], stopped(Kind::Broke)),
    ("uses-a-handle-again", &[], stopped(Kind::Broke)),
    ("drops-a-handle-twice", &[], stopped(Kind::Broke)),
    ("swaps-handles", &[], stopped(Kind::Broke)),
    ("drops-an-image-as-a-container", &[], stopped(Kind::Broke)),
    ("asks-for-an-unknown-strategy", &[], stopped(Kind::Broke)),
    ("answers-from-beyond-its-memory", &[], stopped(Kind::Broke)),
    ("answers-between-words", &[], stopped(Kind::Broke)),
    ("answers-an-unknown-case", &[], stopped(Kind::Broke)),
    ("answers-an-unknown-verdict", &[], stopped(Kind::Broke)),
    ("answers-no-text", &[], stopped(Kind::Broke)),
    ("logs-no-text", &[], stopped(Kind::Broke)),
    ("logs-what-it-does-not-have", &[], stopped(Kind::Broke)),
    ("allocates-beyond-its-memory", &[], Stopped(CheckConfig, Kind::Broke)),
    ("calls-out-of-realloc", &[], Stopped(CheckConfig, Kind::Broke)),
    ("calls-out-after-return", &[], stopped(Kind::Broke)),
    ("decides-twice", &[], stopped(Kind::BadAnswer)),
    ("decides-about-a-stranger", &[], stopped(Kind::BadAnswer)),
    ("decides-without-looking", &[], stopped(Kind::BadAnswer)),
    // Calls without a grant.
    ("acts-while-it-is-described", &[], Held),
    ("pulls-what-no-grant-covers", &[], Held),
    ("pulls-from-within", &[], Held),
    ("removes-without-a-grant", &[], Held),
    ("looks-for-secrets", &[], Held),
    ("looks-for-strangers", &[], Held),
    ("looks-for-files", &[], Held),
    ("looks-around", &[], Held),
    // Bytes that are not a policy for this host.
    ("opens-a-socket", &[], Refused(Kind::UnknownImport)),
    ("speaks-http", &[], Refused(Kind::UnknownImport)),
    ("wants-wasi-0-3", &[], Refused(Kind::UnknownImport)),
    ("wants-secrets", &[], Refused(Kind::UnknownImport)),
    ("wants-one-function-more", &[], Refused(Kind::Misfit)),
    ("speaks-another-version", &[], Refused(Kind::WrongContract)),
    ("shares-its-memory", &[], Refused(Kind::Invalid)),
    ("has-a-wide-memory", &[], Refused(Kind::Invalid)),
];

type Made = (
    &'static str,
    &'static str,
    &'static [Limit],
    Kind,
    fn() -> Vec<u8>,
);

#[rustfmt::skip]
const MADE: &[Made] = &[
    ("is-too-large", "Is larger than a component may be", &[Limit::ComponentBytes], Kind::TooLarge,
        || { let mut bytes = COMPONENT.to_vec(); bytes.resize(COMPONENT_BYTES_MAX + 1, 0); bytes }),
    ("is-empty", "Is a file without a byte", &[], Kind::NotAComponent, Vec::new),
    ("is-a-module", "Is a core module", &[], Kind::NotAComponent, || b"\0asm\x01\0\0\0".to_vec()),
    ("is-machine-code", "Is compiled already, and wants to be run as it is", &[], Kind::NotAComponent, || b"\x7fELF\x02\x01\x01\0".to_vec()),
    ("is-another-file", "Is no WebAssembly at all", &[], Kind::NotAComponent, || b"#!/bin/sh\nrm -rf /\n".to_vec()),
    ("declares-without-end", "Declares two million types in 7 MB, each of which a validator keeps", &[Limit::DeclarationBytes], Kind::Invalid,
        || sections((0..2_000_000).map(|_| section(TYPES, &[1, 0x73])))),
    ("nests-without-end", "Is a component of twenty thousand empty ones", &[Limit::Nested], Kind::Invalid,
        || sections((0..20_000).map(|_| section(NESTED_COMPONENT, COMPONENT)))),
    ("imports-one-type-again-and-again", "Imports an instance of two hundred functions two thousand times, under as many names", &[Limit::Names], Kind::Invalid,
        repeated_imports),
    ("is-nobody", "Is a component with nothing in it", &[], Kind::NotAPolicy, || COMPONENT.to_vec()),
    ("is-cut-off", "Is the first half of a good policy", &[], Kind::Invalid, || DEFAULT_POLICY[..DEFAULT_POLICY.len() / 2].to_vec()),
    ("is-garbled", "Is a good policy of which every hundredth byte was changed", &[], Kind::Invalid,
        || DEFAULT_POLICY.iter().enumerate().map(|(at, byte)| if at > 8 && at % 100 == 0 { !byte } else { *byte }).collect()),
];

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Section numbers in a component.
const NESTED_COMPONENT: u8 = 4;
const TYPES: u8 = 7;
const IMPORTS: u8 = 10;

fn sections(sections: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = COMPONENT.to_vec();
    sections.for_each(|section| bytes.extend(section));
    bytes
}

fn section(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number], &*leb128(content.len()), content].concat()
}

/// Encode a number as in a WebAssembly binary.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [leb128(text.len()), text.as_bytes().to_vec()].concat()
}

fn repeated_imports() -> Vec<u8> {
    const FUNCTIONS: usize = 200;
    const TIMES: usize = 2_000;
    // An instance type: a function type without parameters and results, and exports of that type.
    let mut instance = [&[0x42][..], &leb128(1 + FUNCTIONS), &[1, 0x40, 0, 1, 0]].concat();
    for number in 0..FUNCTIONS {
        let name = text(&format!("function-{number}"));
        instance.extend([&[4, 0][..], &name, &[1, 0]].concat());
    }
    let mut imports = leb128(TIMES);
    for number in 0..TIMES {
        let name = text(&format!("acme:vault/vault{number}"));
        imports.extend([&[0][..], &name, &[5, 0]].concat());
    }
    let types = section(TYPES, &[&[1][..], &instance].concat());
    sections([types, section(IMPORTS, &imports)].into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_has_an_expectation_and_every_expectation_a_text() {
        let expected: std::collections::BTreeSet<_> = EXPECTED.iter().map(|it| it.0).collect();
        let built: std::collections::BTreeSet<_> = BUILT.iter().map(|it| it.0).collect();
        assert_eq!(expected, built);
        assert_eq!(expected.len(), EXPECTED.len(), "a name stands there twice");
    }

    #[test]
    fn every_limit_is_crossed_by_a_guest() {
        let guests = guests();
        for limit in Limit::ALL {
            assert!(
                guests.iter().any(|guest| guest.crosses.contains(limit)),
                "no guest crosses `{}`",
                limit.key()
            );
        }
    }
}
