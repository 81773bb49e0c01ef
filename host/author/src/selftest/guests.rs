//! The hostile guests: what each must come to, and which limits it crosses. What it tries is said in its own first line
//! (`host/author/selftest/guests`).

use refit_sandbox::limits::{COMPONENT_BYTES_MAX, Limit};
use refit_sandbox::{DEFAULT_POLICY, PolicyErrorKind as Kind, Task};

use super::RECREATES_MAX;

// `BUILT`: name, what it tries, component; written by `host/author/selftest/build.rs`.
include!(concat!(env!("OUT_DIR"), "/selftest.rs"));

/// What a guest must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It does not become a policy: loading ends in this error.
    Refused(Kind),
    /// It is stopped while it does this.
    Stopped(Task, Kind),
    /// It gets no more than it may, and a report comes out. Some of these trap by themselves where they do get more.
    Held,
    /// As `Held`, and part of what it says was left out or cut.
    Cut,
    /// It says itself that it cannot make the refresh.
    Fails,
}

/// Which clock it runs by. Everything but the time is as in production for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// All the time that a policy has.
    Full,
    /// A fraction of a second to compute, so that a dozen guests that never end take seconds and not minutes.
    Short,
}

#[derive(Clone, Debug)]
pub struct Guest {
    pub name: &'static str,
    /// A sentence without a full stop.
    pub tries: &'static str,
    pub crosses: &'static [Limit],
    pub ending: Ending,
    /// How many containers it may get recreated before it ends.
    pub recreates: usize,
    pub pace: Pace,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Built(&'static [u8]),
    /// Bytes that are no component, or too large to be kept in the program.
    Made(fn() -> Vec<u8>),
}

impl Guest {
    /// Seconds, while the others take milliseconds.
    pub(super) fn takes_its_time(&self) -> bool {
        self.pace == Pace::Full && self.ending == stopped(Kind::Interrupted)
    }

    pub fn bytes(&self) -> Vec<u8> {
        match self.source {
            Source::Built(bytes) => bytes.to_vec(),
            Source::Made(make) => make(),
        }
    }
}

/// The component of one, by name.
pub fn component(name: &str) -> Option<Vec<u8>> {
    let guest = guests().into_iter().find(|guest| guest.name == name)?;
    Some(guest.bytes())
}

/// All of them, in the order in which they are run and shown.
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

/// Stopped while it makes a refresh.
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
    // What it says and what it keeps.
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
    // What no grant covers.
    ("acts-while-it-is-described", &[], Held),
    ("pulls-what-no-grant-covers", &[], Held),
    ("pulls-from-within", &[], Held),
    ("removes-without-a-grant", &[], Held),
    ("looks-for-secrets", &[], Held),
    ("looks-for-strangers", &[], Held),
    ("looks-for-files", &[], Held),
    ("looks-around", &[], Held),
    // What is no policy for this host.
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
        imports_again_and_again),
    ("is-nobody", "Is a component with nothing in it", &[], Kind::NotAPolicy, || COMPONENT.to_vec()),
    ("is-cut-off", "Is the first half of a good policy", &[], Kind::Invalid, || DEFAULT_POLICY[..DEFAULT_POLICY.len() / 2].to_vec()),
    ("is-garbled", "Is a good policy of which every hundredth byte was changed", &[], Kind::Invalid,
        || DEFAULT_POLICY.iter().enumerate().map(|(at, byte)| if at > 8 && at % 100 == 0 { !byte } else { *byte }).collect()),
];

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Numbers of sections in a component.
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

/// A number as WebAssembly writes it.
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

fn imports_again_and_again() -> Vec<u8> {
    const FUNCTIONS: usize = 200;
    const TIMES: usize = 2_000;
    // An instance type: a function type without parameters and results, and exports of it.
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
