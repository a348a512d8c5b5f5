//! A failure with what can be found out about it.

use std::{
    borrow::Cow,
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use mongodb::error::{Error, ErrorKind};

use super::{
    ClientSlot, Mongo, MongoError, cause,
    class::{self, Class},
    records,
    renewal::Place,
    seeds::{self, Found},
};
use crate::{config::Uri, model::hint::Hint};

/// For how long what was found out is told again without a new look.
const HOLDS_FOR: Duration = Duration::from_secs(5);

/// What was found out last.
pub(super) type Latest = tokio::sync::Mutex<Option<(Instant, Found)>>;

/// The driver's error, why it came about, and where what must be corrected stands.
#[derive(Debug)]
pub struct Explained {
    error: Error,
    found: Option<Found>,
    place: Arc<Place>,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Some(found) => f.write_str(&found.text),
            None => f.write_str(&cause::describe(&self.error)),
        }
    }
}

impl MongoError {
    /// The driver's own account.
    pub fn driver(&self) -> Option<&Error> {
        match self {
            MongoError::Driver(error) => Some(error),
            MongoError::Explained(explained) => Some(&explained.error),
            MongoError::Silent(_) | MongoError::BadUri(_) | MongoError::Unproven => None,
        }
    }

    /// Where the connection string in use comes from, where that is known.
    pub fn origin(&self) -> Option<&str> {
        match self {
            MongoError::Explained(explained) => explained.place.origin.as_deref(),
            _ => None,
        }
    }

    /// The database in which the user was looked for, where the connection string names that without meaning it.
    pub(super) fn looked_for_in(&self) -> Option<&str> {
        match self {
            MongoError::Explained(explained) => explained.place.looked_for_in.as_deref(),
            _ => None,
        }
    }

    /// The file in use that an option of the connection string names, where that is known.
    pub fn file(&self, option: &str) -> Option<&Path> {
        match self {
            MongoError::Explained(explained) => explained.place.file(option),
            _ => None,
        }
    }
}

/// Where that is certain.
impl Hint for MongoError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            MongoError::Explained(explained) => {
                explained.found.as_ref()?.hint.as_deref().map(Cow::from)
            }
            _ => None,
        }
    }
}

impl Mongo {
    /// A failure with why no server can be chosen, or where what is refused comes from. What a client is made of is
    /// looked at as well: it may have been renewed.
    pub(super) async fn explained<T>(
        &self,
        slot: &ClientSlot,
        reply: Result<T, MongoError>,
    ) -> Result<T, MongoError> {
        match reply {
            Err(MongoError::Driver(error)) => Err(Box::pin(self.explain(slot, error)).await),
            reply => reply,
        }
    }

    async fn explain(&self, slot: &ClientSlot, error: Error) -> MongoError {
        let is_choice = matches!(error.kind.as_ref(), ErrorKind::ServerSelection { .. });
        if let Some(dump) = cause::dump(&error) {
            tracing::debug!(end = self.connect.end, error = dump, "what the driver knows");
        }
        let failed = MongoError::Driver(error.clone());
        if !is_choice && class::class_of(&failed) != Class::Denied {
            return failed;
        }
        self.renew(slot, true).await;
        if is_choice {
            records::follow(self, slot);
        }
        let found = if is_choice { Some(self.asked(slot).await) } else { None };
        MongoError::Explained(Arc::new(Explained { error, found, place: slot.place.clone() }))
    }

    async fn asked(&self, slot: &ClientSlot) -> Found {
        let mut latest = self.found.lock().await;
        if let Some((at, found)) = &*latest
            && at.elapsed() < HOLDS_FOR
        {
            return found.clone();
        }
        let origin = slot.place.origin.as_deref().unwrap_or("the connection string");
        let found = seeds::ask(&slot.options, origin).await;
        latest.insert((Instant::now(), found)).1.clone()
    }
}

fn unresolved(uri: &Uri, error: &Error, place: &Place) -> Found {
    let text = cause::describe(error);
    let cause = text.rsplit("DNS error: ").next().unwrap_or(&text);
    let cause = cause.split(" for Query").next().unwrap_or(cause);
    let name = uri.hosts().next().unwrap_or_default();
    let origin = place.origin.as_deref().unwrap_or("the connection string");
    Found {
        text: format!("the name service does not tell the servers of `{name}`: {cause}"),
        hint: Some(format!(
            "check the name in {origin} and this machine's name service; a string that names the servers \
             (`mongodb://host,host,host`) asks for no such records"
        )),
    }
}

/// What the driver, or the name service, says of a connection string.
pub(super) fn of_the_string(uri: &Uri, error: Error) -> MongoError {
    match error.kind.as_ref() {
        // `mongodb+srv://`, whose servers a name service tells.
        ErrorKind::DnsResolve { .. } | ErrorKind::Io(_) => {
            let place = Place::of(uri);
            let found = Some(unresolved(uri, &error, &place));
            return MongoError::Explained(Arc::new(Explained { error, found, place }));
        }
        _ => {}
    }
    let message = cause::describe(&error);
    // Never in part: what is left of a secret is a secret.
    let tells =
        uri.secrets().into_iter().any(|secret| !secret.is_empty() && message.contains(secret));
    MongoError::BadUri(if tells { "the driver does not take it".to_owned() } else { message })
}
