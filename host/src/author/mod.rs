//! For those who write policies: a policy over scenarios, and what it costs. Needs no engine and no daemon.

pub mod scenario;
