//! `refit policy new | build`: the author's kit. Needs no configuration, so that none can be in its way.

mod build;
mod new;

pub(super) use self::build::build;
pub(super) use self::new::new;
