//! Prints errors for users: what failed, its causes one per line, then what the user can do.
//!
//! An error is a sentence and never contains its own cause; a hint is advice. They have different types, and only this module
//! prints them.

use std::error::Error;
use std::fmt;

/// An error with hints for the user.
pub trait Hints: Error {
    /// Returns the hints, each one line, in lower case, without a full stop.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An error on its way to a person: its sentence, its causes and its hints, detached from its type.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Diagnostic {
    /// What could not be done, to what.
    pub error: String,
    /// From the nearest to the root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// How a [`Diagnostic`] looks in a document that has its fields where something failed, and none of them otherwise. Only described,
/// never made.
#[derive(utoipa::ToSchema)]
pub struct Failure {
    /// What could not be done, to what. Left out where nothing failed.
    pub error: Option<String>,
    /// From the nearest to the root.
    pub causes: Option<Vec<String>>,
    pub hints: Option<Vec<String>>,
}

impl Diagnostic {
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            causes: Vec::new(),
            hints: Vec::new(),
        }
    }

    pub fn of(error: &(impl Hints + ?Sized)) -> Self {
        Self {
            error: error.to_string(),
            causes: causes(error),
            hints: error.hints(),
        }
    }

    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Formats error and causes on one line, for a log or a field of a report.
    pub fn sentence(&self) -> String {
        let mut sentence = self.error.clone();
        for cause in &self.causes {
            sentence.push_str(": ");
            sentence.push_str(cause);
        }
        sentence
    }
}

/// A cause of which only the text is left, with its own cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Cause {
    text: String,
    source: Option<Box<Cause>>,
}

impl Diagnostic {
    /// Returns the causes as an error, for an error that carries a diagnostic and has a `source`.
    pub fn cause(&self) -> Option<Cause> {
        self.causes.iter().rev().fold(None, |below, text| {
            Some(Cause {
                text: text.clone(),
                source: below.map(Box::new),
            })
        })
    }
}

impl<E: Hints> From<E> for Diagnostic {
    fn from(error: E) -> Self {
        Self::of(&error)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.error)?;
        for cause in &self.causes {
            writeln!(f, "  caused by: {cause}")?;
        }
        if !self.hints.is_empty() {
            writeln!(f)?;
        }
        for hint in &self.hints {
            writeln!(f, "hint: {hint}")?;
        }
        Ok(())
    }
}

/// Lists the causes of an error. Many libraries repeat the cause in their own message; such repetitions are left out.
pub fn causes(error: &(impl Error + ?Sized)) -> Vec<String> {
    /// No real chain is longer, and a cyclic chain must end.
    const DEPTH_MAX: usize = 16;
    let mut causes: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        let repeated = causes.last().is_some_and(|above| above == &text);
        if !repeated && !text.is_empty() {
            causes.push(text);
        }
        if causes.len() == DEPTH_MAX {
            break;
        }
        next = cause.source();
    }
    // "error sending request: connection refused" before "connection refused" would repeat it.
    for index in (1..causes.len()).rev() {
        let below = format!(": {}", causes[index]);
        if let Some(shortened) = causes[index - 1].strip_suffix(&below) {
            causes[index - 1] = shortened.to_owned();
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start the replacement of `web`; the old container is running again")]
    struct Outer {
        source: Middle,
    }
    #[derive(Debug, thiserror::Error)]
    #[error("the engine answered 500: port is taken")]
    struct Middle {
        source: std::io::Error,
    }
    impl Hints for Outer {
        fn hints(&self) -> Vec<String> {
            vec!["port 8080 is taken by something other than `web`".into()]
        }
    }

    #[test]
    fn error_prints_sentence_causes_and_hints() {
        let error = Outer {
            source: Middle {
                source: std::io::Error::other("port is taken"),
            },
        };
        assert_eq!(
            Diagnostic::of(&error).to_string(),
            "error: cannot start the replacement of `web`; the old container is running again\n  \
             caused by: the engine answered 500\n  caused by: port is taken\n\n\
             hint: port 8080 is taken by something other than `web`\n"
        );
    }
}
