//! Watching for new images: what rings, what is looked at, and when what was found is adopted.
//!
//! [`bell`] is how others (webhooks, an operator) say that an image may have changed; [`adopt`] is what becomes of a finding: a
//! refresh at once, or one that waits for approval. Knows nothing of HTTP.

pub mod adopt;
pub mod bell;
