//! What to do next about an error. Each error says it itself, beside its own words, so that whoever shows it (the CLI, the
//! admin API) need not know what it is of.

use std::borrow::Cow;

/// An error that knows what a person can do about it.
pub trait Hint: std::error::Error {
    /// What to do next; `None` where that is not known.
    fn hint(&self) -> Option<Cow<'_, str>>;
}
