//! What a person sees when something is wrong: what happened, why, and what to do next.

use std::{borrow::Cow, error::Error, fmt::Write};

use crate::model::hint::Hint;

/// A failure as it leaves the program: a message, its causes, a hint, and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub error: anyhow::Error,
    pub hint: Option<String>,
    pub exit: ExitCode,
}

/// The exit codes, which scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// A problem was found: mismatch, unhealthy, refused.
    Problem = 1,
    /// Usage or configuration.
    Usage = 2,
    /// The local database is unreachable or unfit.
    Local = 3,
    /// Atlas is unreachable or denies access.
    Atlas = 4,
    /// Replication is switched off, and a service manager is not to start it again. By hand it is 0.
    SwitchedOff = 5,
}

impl Failure {
    pub fn new(exit: ExitCode, error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), hint: None, exit }
    }

    /// Of an error that says itself what to do next.
    pub fn of(exit: ExitCode, error: impl Hint + Into<anyhow::Error>) -> Self {
        let hint = error.hint().map(Cow::into_owned);
        Self { error: error.into(), hint, exit }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The three parts:
    ///
    /// ```text
    /// error: what happened
    ///   cause: why
    ///
    /// hint: what to do next
    /// ```
    pub fn render(&self) -> String {
        let mut text = format!("error: {}\n", self.error);
        let mut last = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // A `#[error(transparent)]` layer has the same text as its cause, which would be printed twice.
            if cause != last {
                let _ = writeln!(text, "  cause: {cause}");
            }
            last = cause;
        }
        if let Some(hint) = &self.hint {
            let _ = write!(text, "\nhint: {hint}\n");
        }
        // What an end says may hold names that anybody has made.
        legible(&text, &[]).into_owned()
    }
}

impl Failure {
    /// As [`render`](Self::render), for a stream that leaves colours out where they do not belong.
    pub fn render_in_colour(&self) -> String {
        let text = self.render();
        let text = text.replacen("error:", "\x1b[1;31merror:\x1b[0m", 1);
        text.replacen("\nhint:", "\n\x1b[1;36mhint:\x1b[0m", 1)
    }
}

/// The text without what a terminal takes for an order, but for `orders` that are our own: such a sign is shown as its
/// number. Lines and tabs stay.
pub fn legible<'t>(text: &'t str, orders: &[&str]) -> Cow<'t, str> {
    let is_order = |c: char| c.is_control() && c != '\n' && c != '\t';
    let Some(first) = text.find(is_order) else { return text.into() };
    let (mut told, mut rest) = (text[..first].to_owned(), &text[first..]);
    while let Some(sign) = rest.chars().next() {
        let own = orders.iter().find(|order| rest.starts_with(**order));
        let n = own.map_or(sign.len_utf8(), |own| own.len());
        match own {
            Some(own) => told.push_str(own),
            None if is_order(sign) => told.extend(sign.escape_unicode()),
            None => told.push(sign),
        }
        rest = &rest[n..];
    }
    told.into()
}

/// An error and its causes in one line, for a log field.
pub fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_three_parts() {
        let error =
            anyhow::anyhow!("connection refused").context("the local database is not available");
        let failure =
            Failure::new(ExitCode::Local, error).hint("start it with `systemctl start mongod`");

        assert_eq!(
            failure.render(),
            "error: the local database is not available\n  cause: connection refused\n\n\
             hint: start it with `systemctl start mongod`\n"
        );
    }
}
