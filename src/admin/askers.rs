//! Who asks for an action, and why, as they say: for the log, and for whoever reads it later.
//!
//! The token is one for all, so a name is only as good as whoever has it: the peer's address is what is certain.

use std::{convert::Infallible, net::SocketAddr};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, StatusCode, request::Parts},
    response::Response,
};

use crate::config::decoded;

/// The header in which a client says who it is, percent-encoded; the CLI sends the user's name.
pub const USER: &str = "x-outrigger-user";

/// The header in which it says why, percent-encoded.
pub const REASON: &str = "x-outrigger-reason";

/// Longest text that is taken of either.
const TOLD_MAX: usize = 200;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub SocketAddr);

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker {
    peer: Option<SocketAddr>,
    user: Option<String>,
    pub reason: Option<String>,
}

/// Why something is done, where the body of a request says it. Goes with the answer to whoever logs it.
#[derive(Clone, Debug)]
pub(super) struct Why(pub Option<String>);

/// One line of plain signs, of a bounded length. Whatever a person types is kept, shown and logged in this form.
pub fn told(text: &str) -> String {
    let plain = text.chars().filter(|sign| !is_unseen(*sign));
    let plain = plain.map(|sign| if is_break(sign) { ' ' } else { sign });
    plain.take(TOLD_MAX).collect::<String>().trim().to_owned()
}

/// What ends a line, or does something to a terminal.
fn is_break(sign: char) -> bool {
    sign.is_control() || matches!(sign, '\u{2028}' | '\u{2029}')
}

/// Signs that show nothing and change how what follows is read: turned round (U+202E), or as something that it is not.
/// Joiners stay, without which some scripts cannot be written.
const fn is_unseen(sign: char) -> bool {
    matches!(sign,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

impl Asker {
    pub fn of(headers: &HeaderMap, peer: Option<&Peer>) -> Self {
        let said = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?;
            Some(told(&decoded(text))).filter(|text| !text.is_empty())
        };
        Self { peer: peer.map(|peer| peer.0), user: said(USER), reason: said(REASON) }
    }

    /// As a person reads it: `ann@desk (127.0.0.1)`.
    pub fn name(&self) -> String {
        match (&self.user, self.peer) {
            (Some(user), Some(peer)) => format!("{user} ({})", peer.ip()),
            (Some(user), None) => user.clone(),
            (None, Some(peer)) => format!("the token from {}", peer.ip()),
            (None, None) => "the token".to_owned(),
        }
    }

    /// Leaves a line in the log of what changes something.
    pub fn log(&self, method: &Method, path: &str, answer: &Response) {
        let reason = answer.extensions().get::<Why>().and_then(|why| why.0.clone());
        let reason = reason.or_else(|| self.reason.clone()).unwrap_or_default();
        // An id is no secret. An `_id` may be one: it is in the paths of documents, of which no action is.
        let path = if path.starts_with("/api/documents/") { "/api/documents/…" } else { path };
        let action = format!("{method} {path}");
        let (by, outcome) = (self.name(), answer.status().as_u16());
        if answer.status() < StatusCode::BAD_REQUEST {
            tracing::info!(action, by, reason, outcome, "an action was asked for");
        } else {
            tracing::warn!(action, by, reason, outcome, "an action was asked for and not done");
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers, parts.extensions.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_in_one_line_with_where_from() {
        let mut headers = HeaderMap::new();
        headers.insert(USER, "ann%40desk%0Ano".parse().unwrap());
        headers.insert(REASON, "w%C3%A4rmer".parse().unwrap());
        let peer = Peer(([127, 0, 0, 1], 5).into());

        let asker = Asker::of(&headers, Some(&peer));

        assert_eq!(asker.name(), "ann@desk no (127.0.0.1)");
        assert_eq!(asker.reason.as_deref(), Some("wärmer"));
        assert_eq!(Asker::of(&HeaderMap::new(), Some(&peer)).name(), "the token from 127.0.0.1");
        assert_eq!(told(&"x".repeat(999)).len(), TOLD_MAX);
        assert_eq!(told("\u{1b}[2Jgone\u{202e}txt\u{2066}\u{2029}on"), "[2Jgonetxt on");
    }
}
