//! Files that a connection is made of, and that are renewed while the agent runs: the authorities, the client's
//! certificate, and the connection string itself with its password.
//!
//! The driver reads them once for each client. So whoever is about to use a client has them looked at, at most
//! every [`LOOK_EVERY`], and after a refusal at once; where they have changed, a new client is made of them and
//! tried, and takes the old one's place when it is answered. Until then the old one goes on: a file may be half
//! written, and a password may be in the file before it is in the database. A new client has new connections,
//! which the [guard](super::guard) has proven by themselves.
//!
//! A string that leads to other servers than before is not followed: whose data they hold is settled at a start.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex as StdMutex, MutexGuard};
use sha2::{Digest, Sha256};

use super::{ClientSlot, Mongo, MongoError, records::LastAsked};
use crate::{
    config::{Origin, Uri, secret::ReadError},
    runtime::trust,
};

/// How often files are looked at while the client is in use.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How soon what did not work is tried again, if it is still the same.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// A digest of everything that a client is made of.
pub(super) type Print = [u8; 32];

/// Options that name files.
pub(super) const FILES: [&str; 2] = ["tlsCAFile", "tlsCertificateKeyFile"];

/// How a certificate begins in them.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// What is remembered of the looks.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    state: StdMutex<RenewalState>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    pub(super) records: LastAsked,
}

#[derive(Debug, Default)]
struct RenewalState {
    last_look: Option<Instant>,
    /// What did not work when it was last tried, and when that was.
    failed: Option<(Print, Instant)>,
    told: Option<Print>,
    /// The string that the present client was made of.
    in_use: Option<Uri>,
}

/// Why the files are not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRenewed {
    #[error("`{path}`{} cannot be used: {source}", named_by(*.option))]
    File { path: PathBuf, option: Option<&'static str>, source: ReadError },
    #[error(
        "{0} leads to other servers than at the start; the agent follows it after a restart only"
    )]
    Elsewhere(String),
}

fn named_by(option: Option<&str>) -> String {
    option.map_or_else(String::new, |option| format!(", which `{option}` names,"))
}

/// The string as it is now, and the print of all that belongs to it.
fn read(first: &Uri) -> Result<(Uri, Print), NotRenewed> {
    let uri = match first.origin() {
        Origin::File(path) => {
            let unfit = |source| NotRenewed::File { path: path.clone(), option: None, source };
            Uri::read(path).map_err(unfit)?
        }
        Origin::Unknown | Origin::Named(_) => first.clone(),
    };
    if !uri.leads_where(first) {
        return Err(NotRenewed::Elsewhere(uri.origin().to_string()));
    }
    let print = print_of(&uri)?;
    Ok((uri, print))
}

/// The print of a string and of the files that it names.
pub(super) fn print_of(uri: &Uri) -> Result<Print, NotRenewed> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(uri.expose().as_bytes());
    for (option, path) in FILES.into_iter().filter_map(|option| Some((option, uri.file(option)?))) {
        let failed = |source| NotRenewed::File { path: path.clone(), option: Some(option), source };
        let held = std::fs::read(&path).map_err(|error: io::Error| failed(error.into()))?;
        // The driver takes a file without any for one with authorities that have signed nothing.
        if !held.windows(CERTIFICATE.len()).any(|part| part == CERTIFICATE) {
            let problem = "it holds no certificate (PEM, `-----BEGIN CERTIFICATE-----`)";
            return Err(failed(ReadError::Malformed(problem.to_owned())));
        }
        add(&held);
    }
    Ok(hash.finalize().into())
}

/// The print of the system's authorities, where they count. They are many, so that they are looked at after a
/// refusal only.
pub(super) fn print_of_authorities(uri: &Uri) -> Option<Print> {
    (uri.uses_tls() && uri.option("tlsCAFile").is_none()).then(|| {
        let mut hash = Sha256::new();
        for certificate in trust::authorities() {
            hash.update(certificate);
        }
        hash.finalize().into()
    })
}

fn may_be_renewed(uri: &Uri) -> bool {
    matches!(uri.origin(), Origin::File(_))
        || FILES.iter().any(|option| uri.option(option).is_some())
}

impl Renewal {
    fn state(&self) -> MutexGuard<'_, RenewalState> {
        self.state.lock()
    }
}

impl Mongo {
    /// The string that a client is made of: as it is now, or, where that cannot be used, as it last was.
    pub(super) async fn uri_now(&self) -> Uri {
        let last = self.renewal.state().in_use.clone().unwrap_or_else(|| self.uri.clone());
        if !may_be_renewed(&self.uri) {
            return last;
        }
        let first = self.uri.clone();
        let now = tokio::task::spawn_blocking(move || read(&first)).await;
        let uri = now.ok().and_then(Result::ok).map_or(last, |(uri, _)| uri);
        self.renewal.state().in_use = Some(uri.clone());
        uri
    }

    /// Has the files looked at, beside whatever `slot` is used for.
    pub(super) fn look_for_renewal(&self, slot: &ClientSlot) {
        if !may_be_renewed(&self.uri) {
            return;
        }
        {
            let mut state = self.renewal.state();
            let last = *state.last_look.get_or_insert_with(Instant::now);
            if last.elapsed() < LOOK_EVERY {
                return;
            }
            state.last_look = Some(Instant::now());
        }
        let (mongo, slot) = (self.clone(), slot.clone());
        tokio::spawn(async move { mongo.renew(&slot, false).await });
    }

    /// Puts a new client in the place of this one, if the files have changed and work.
    pub(super) async fn renew(&self, slot: &ClientSlot, is_refused: bool) {
        if !may_be_renewed(&self.uri) && slot.authorities.is_none() {
            return;
        }
        let _one_at_a_time = self.renewal.looking.lock().await;
        let first = self.uri.clone();
        let known = slot.authorities;
        let look = move || {
            let (uri, mut print) = read(&first)?;
            let authorities = if is_refused { print_of_authorities(&uri) } else { known };
            if authorities != known {
                // The string and its files are the same, the system's certificates are not. Both together must give
                // another print than before, or the client would be taken for one that is up to date.
                print.iter_mut().zip(authorities.unwrap_or_default()).for_each(|(a, b)| *a ^= b);
            }
            Ok((uri, print))
        };
        let Ok(read) = tokio::task::spawn_blocking(look).await else { return };
        let (uri, print) = match read {
            Ok(read) => read,
            Err::<_, NotRenewed>(problem) => return self.tell_once([0; 32], &problem.to_string()),
        };
        let is_present =
            self.client.lock().await.as_ref().is_none_or(|present| {
                present.number != slot.number || present.print == Some(print)
            });
        let has_failed = self
            .renewal
            .state()
            .failed
            .is_some_and(|(failed, at)| failed == print && at.elapsed() < TRY_AGAIN);
        if is_present || has_failed {
            return;
        }
        match self.tried(&uri).await {
            Ok(new) => {
                if self.replace(slot, new, uri).await {
                    tracing::info!(
                        end = self.connect.end,
                        "what the connection is made of was renewed; new connections use it"
                    );
                }
            }
            Err(error) => {
                self.renewal.state().failed = Some((print, Instant::now()));
                self.tell_once(print, &error.to_string());
            }
        }
    }

    /// Puts a client that was made of `uri` in the place of `slot`; false where somebody else has done so before.
    pub(super) async fn replace(&self, slot: &ClientSlot, new: ClientSlot, uri: Uri) -> bool {
        let mut client = self.client.lock().await;
        if client.as_ref().is_some_and(|present| present.number != slot.number) {
            return false;
        }
        *client = Some(new);
        drop(client);
        let mut state = self.renewal.state();
        (state.failed, state.told) = (None, None);
        state.in_use = Some(uri);
        true
    }

    /// A new client that was answered.
    pub(super) async fn tried(&self, uri: &Uri) -> Result<ClientSlot, MongoError> {
        let timeout = self.connect.timeout;
        let trial = async {
            let new = self.make_client(uri).await?;
            // Authentication takes place with the first command: a wrong password is found here, while the client that
            // works is still in use.
            new.client.database("admin").run_command(bson::doc! { "hello": 1 }).await?;
            Ok(new)
        };
        tokio::time::timeout(timeout, trial).await.unwrap_or(Err(MongoError::Silent(timeout)))
    }

    fn tell_once(&self, print: Print, error: &str) {
        if self.renewal.state().told.replace(print) != Some(print) {
            tracing::warn!(
                error,
                "what the connection is made of has changed, and does not work yet; the old goes on"
            );
        }
    }
}

/// Where what a client is made of comes from, for advice.
#[derive(Debug)]
pub struct Place {
    pub(super) origin: Option<String>,
    /// The database of the path, which is also where the user is looked for unless `authSource` says otherwise: the
    /// usual reason why a right password is refused.
    pub(super) looked_for_in: Option<String>,
    files: Vec<(&'static str, PathBuf)>,
}

impl Place {
    pub(super) fn of(uri: &Uri) -> Arc<Self> {
        let origin = match uri.origin() {
            Origin::Unknown => None,
            known => Some(known.to_string()),
        };
        let files = FILES.into_iter().filter_map(|option| Some((option, uri.file(option)?)));
        // The records of `mongodb+srv://` say where.
        let says_where =
            uri.option("authSource").is_some() || !uri.has_credentials() || uri.is_srv();
        let database = uri.database().filter(|db| !says_where && *db != "admin");
        let looked_for_in = database.map(str::to_owned);
        Arc::new(Self { origin, looked_for_in, files: files.collect() })
    }

    pub(super) fn file(&self, option: &str) -> Option<&Path> {
        self.files.iter().find(|(name, _)| *name == option).map(|(_, path)| path.as_path())
    }
}
