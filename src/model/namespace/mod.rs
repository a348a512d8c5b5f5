//! Which collection: a [`Namespace`] names one, a [`NamespaceFilter`] chooses the replicated ones.
//!
//! The filter exists once and is used twice: as a `$match` on the server, so that what is not
//! replicated never crosses the wire, and as [`NamespaceFilter::matches`] here, which decides. The
//! server's may let more through, and never less.

use std::{collections::VecDeque, fmt, str::FromStr, sync::Arc};

use bson::RawDocumentBuf;
use regex::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod on_the_server;

/// Database and collection, as `database.collection`; a collection's name may hold further dots.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace {
    full: Arc<str>,
    dot: usize,
}

impl Namespace {
    /// Joins a database and a collection. Neither is checked: the server is the judge of names.
    pub fn new(db: &str, coll: &str) -> Self {
        Self { full: format!("{db}.{coll}").into(), dot: db.len() }
    }

    /// The database, `shop` in `shop.orders`.
    pub fn db(&self) -> &str {
        &self.full[..self.dot]
    }

    /// The collection, `orders` in `shop.orders`.
    pub fn coll(&self) -> &str {
        &self.full[self.dot + 1..]
    }

    /// The whole name, `shop.orders`.
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// A name that stands for every collection of a database. One may be called so: whoever means that takes all.
    pub fn all_of(db: &str) -> Self {
        Self::new(db, EVERY_COLLECTION)
    }

    /// True when this is `other`, or stands for every collection of its database.
    pub fn covers(&self, other: &Namespace) -> bool {
        self == other || (self.coll() == EVERY_COLLECTION && self.db() == other.db())
    }

    /// True for what MongoDB keeps for itself, and for Outrigger's own lease records. None of it is ever
    /// replicated, whatever the filter says.
    pub fn is_internal(&self) -> bool {
        self.is_the_servers() || self.as_str() == OWNERSHIP_NAMESPACE
    }

    fn is_the_servers(&self) -> bool {
        is_internal_db(self.db()) || self.coll().starts_with("system.")
    }
}

const EVERY_COLLECTION: &str = "*";

/// Names that were met lately, so that the documents of a collection share one in memory.
#[derive(Debug, Default)]
pub struct Interner(VecDeque<Namespace>);

/// Names that an [`Interner`] remembers: few, since it looks through them one by one.
const INTERNED_MAX: usize = 16;

impl Interner {
    /// As [`Namespace::new`].
    pub fn named(&mut self, db: &str, coll: &str) -> Namespace {
        let is_it = |ns: &&Namespace| ns.db() == db && ns.coll() == coll;
        self.find(is_it).unwrap_or_else(|| self.remember(Namespace::new(db, coll)))
    }

    /// As [`Namespace::from_str`].
    ///
    /// # Errors
    /// [`BadNamespace`].
    pub fn parse(&mut self, text: &str) -> Result<Namespace, BadNamespace> {
        match self.find(|ns| ns.as_str() == text) {
            Some(ns) => Ok(ns),
            None => Ok(self.remember(text.parse()?)),
        }
    }

    fn find(&self, is_it: impl FnMut(&&Namespace) -> bool) -> Option<Namespace> {
        self.0.iter().find(is_it).cloned()
    }

    fn remember(&mut self, ns: Namespace) -> Namespace {
        if self.0.len() == INTERNED_MAX {
            self.0.pop_back();
        }
        self.0.push_front(ns.clone());
        ns
    }
}

/// Where the lease is kept in Atlas, unless `atlas.state_database` names another database.
pub const OWNERSHIP_NAMESPACE: &str = "outrigger.replicas";
pub const STATE_DATABASE: &str = "outrigger";
const LEASE_RECORDS: &str = "replicas";

/// Where a restore keeps its notes, in the same database of the local server.
pub const RESTORE_NOTES: &str = "restore";

/// What stands in a name in the place of bytes that are no text. No name with it is ever replicated: two that
/// differ in such bytes alone would be one.
const NOT_TEXT: char = char::REPLACEMENT_CHARACTER;

/// True for the databases that belong to the server itself.
pub fn is_internal_db(db: &str) -> bool {
    matches!(db, "admin" | "config" | "local")
}

/// A text that is no `database.collection`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a namespace: write `database.collection`")]
pub struct BadNamespace(String);

impl FromStr for Namespace {
    type Err = BadNamespace;

    fn from_str(text: &str) -> Result<Self, BadNamespace> {
        match text.split_once('.') {
            Some((db, coll)) if !db.is_empty() && !coll.is_empty() => Ok(Self::new(db, coll)),
            _ => Err(BadNamespace(text.to_owned())),
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl Serialize for Namespace {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full)
    }
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A glob over namespaces, `shop.*` or `*.sessions`: `*` stands for any run of characters, `?` for
/// one. The part before the first dot is matched against the database, the rest against the
/// collection.
#[derive(Clone, Debug)]
struct Glob {
    db: Part,
    coll: Part,
}

/// One of the two parts of a glob.
#[derive(Clone, Debug)]
enum Part {
    /// `*`.
    Any,
    /// A name without wildcards.
    Name(String),
    /// A name with some.
    Like(Regex),
}

impl Part {
    fn parse(glob: &str) -> Self {
        if glob.bytes().all(|byte| byte == b'*') {
            Part::Any
        } else if glob.contains(['*', '?']) {
            Part::Like(regex_of_glob(glob))
        } else {
            Part::Name(glob.to_owned())
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Part::Any => true,
            Part::Name(it) => it == name,
            Part::Like(regex) => regex.is_match(name),
        }
    }
}

/// A pattern of `namespaces.include` or `namespaces.exclude` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a namespace pattern: write `shop.*` for a database, \
     `*.sessions` for a collection in every database"
)]
pub struct BadPattern(String);

impl Glob {
    fn parse(pattern: &str) -> Result<Self, BadPattern> {
        match pattern.split_once('.') {
            Some((db, coll)) if !db.is_empty() && !coll.is_empty() && !pattern.contains('\0') => {
                Ok(Self { db: Part::parse(db), coll: Part::parse(coll) })
            }
            _ => Err(BadPattern(pattern.to_owned())),
        }
    }

    fn matches(&self, db: &str, coll: &str) -> bool {
        self.db.matches(db) && self.coll.matches(coll)
    }
}

/// The one translation from glob to regular expression; the syntax is common to the server's PCRE
/// and to the `regex` crate.
fn regex_of_glob(glob: &str) -> Regex {
    let mut pattern = String::from("(?s)^");
    for c in glob.chars() {
        match c {
            '*' => pattern.push_str(".*"),
            '?' => pattern.push('.'),
            c => pattern.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    pattern.push('$');
    Regex::new(&pattern).expect("an escaped glob is a valid regular expression")
}

/// Chooses the namespaces that are replicated: all that some `include` matches and no `exclude`
/// does, without what is the server's, and what would be in the way of the lease
/// ([`kept_apart`](Self::kept_apart)).
#[derive(Clone, Debug)]
pub struct NamespaceFilter {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
    fingerprint: String,
    patterns: Patterns,
    /// Where the lease is kept.
    state_database: Arc<str>,
}

/// The patterns that a filter was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

impl NamespaceFilter {
    /// Builds the filter from glob patterns. An empty `include` means everything.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, BadPattern> {
        let parse = |patterns: &[String]| -> Result<Vec<Glob>, BadPattern> {
            patterns.iter().map(|pattern| Glob::parse(pattern)).collect()
        };
        let mut hasher = Sha256::new();
        for (kind, patterns) in [("+", include), ("-", exclude)] {
            let mut sorted: Vec<_> = patterns.iter().collect();
            sorted.sort();
            for pattern in sorted {
                hasher.update(format!("{kind}{pattern}\n"));
            }
        }
        let fingerprint = shortened(hasher);
        let patterns = Patterns { include: include.to_vec(), exclude: exclude.to_vec() };
        let state_database = STATE_DATABASE.into();
        let (include, exclude) = (parse(include)?, parse(exclude)?);
        Ok(Self { include, exclude, fingerprint, patterns, state_database })
    }

    /// The same choice, with the lease in another database.
    #[must_use]
    pub fn with_state_database(mut self, db: &str) -> Self {
        if *self.state_database != *db {
            let mut hasher = Sha256::new();
            hasher.update(format!("{}\n{db}", self.fingerprint));
            (self.fingerprint, self.state_database) = (shortened(hasher), db.into());
        }
        self
    }

    /// The database in Atlas that holds the lease.
    pub fn state_database(&self) -> &str {
        &self.state_database
    }

    /// Why a namespace that the patterns choose is kept apart all the same: its name cannot be told; the lease
    /// or the notes of a restore have its place, or the database cannot be in Atlas beside the one of the lease (MongoDB takes no two names that
    /// differ in capitals alone).
    pub fn kept_apart(&self, ns: &Namespace) -> Option<&'static str> {
        if ns.as_str().contains(NOT_TEXT) && self.is_chosen(ns) {
            return Some("its name holds what is no text (UTF-8)");
        }
        let is_so_called = ns.db().eq_ignore_ascii_case(&self.state_database);
        if !is_so_called || !self.is_chosen(ns) {
            return None;
        }
        if ns.db() != &*self.state_database {
            return Some(
                "in a database whose name differs from that of Outrigger's own in Atlas in capitals alone; \
                 name another for that, `atlas.state_database`",
            );
        }
        match ns.coll() {
            LEASE_RECORDS => Some(
                "where Outrigger keeps its mark of ownership in Atlas; name another database for that, \
                 `atlas.state_database`",
            ),
            RESTORE_NOTES => Some(
                "where a restore keeps its notes until it is verified; name another database for them, \
                 `atlas.state_database`",
            ),
            _ => None,
        }
    }

    /// The patterns that this filter was made from.
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// True when documents of `ns` are replicated.
    pub fn matches(&self, ns: &Namespace) -> bool {
        self.is_chosen(ns) && self.kept_apart(ns).is_none()
    }

    /// True when the patterns choose `ns`, [kept apart](Self::kept_apart) or not.
    pub fn is_chosen(&self, ns: &Namespace) -> bool {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(ns.db(), ns.coll()));
        !ns.is_the_servers()
            && (self.include.is_empty() || any(&self.include))
            && !any(&self.exclude)
    }

    /// True when it chooses all that a database may ever hold.
    pub fn is_whole(&self, db: &str) -> bool {
        let is_any = |glob: &Glob| glob.db.matches(db) && matches!(glob.coll, Part::Any);
        (self.include.is_empty() || self.include.iter().any(is_any))
            && !self.exclude.iter().any(|glob| glob.db.matches(db))
            && !is_internal_db(db)
            && !db.eq_ignore_ascii_case(&self.state_database)
    }

    /// Changes exactly when the chosen namespaces may have changed (sha-256, shortened). A
    /// checkpoint carries it: see [`Checkpoint`](crate::model::checkpoint::Checkpoint).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The `$match` stage that makes the server leave out of the change stream what this filter leaves
    /// out, or most of it: see the module that makes it.
    pub fn to_match_stage(&self) -> RawDocumentBuf {
        on_the_server::match_stage(&self.include, &self.exclude)
    }
}

/// A fingerprint: sha-256, shortened.
fn shortened(hasher: Sha256) -> String {
    let digest = hasher.finalize();
    uuid::Uuid::from_slice(&digest[..16]).map_or_else(
        |_| unreachable!("sha-256 has more than 16 bytes"),
        |shortened| shortened.simple().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> NamespaceFilter {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        NamespaceFilter::new(&own(include), &own(exclude)).unwrap()
    }

    #[test]
    fn an_interner_gives_the_names_that_it_was_asked_for() {
        let mut interner = Interner::default();
        for n in (0..40).chain(0..40) {
            let name = format!("c{n}.x");
            assert_eq!(interner.named("shop", &name), Namespace::new("shop", &name));
            assert_eq!(interner.parse(&format!("shop.{name}")).unwrap().coll(), name);
        }
        assert_eq!(interner.0.len(), INTERNED_MAX);
        assert!(interner.parse("shop").is_err());
    }

    #[test]
    fn a_collection_name_may_hold_dots() {
        let ns: Namespace = "shop.orders.2024".parse().unwrap();

        assert_eq!((ns.db(), ns.coll()), ("shop", "orders.2024"));
    }

    #[test]
    fn a_name_covers_itself_and_that_of_a_database_all_in_it() {
        let ns = Namespace::new("shop", "orders");

        assert!(ns.covers(&ns) && Namespace::all_of("shop").covers(&ns));
        assert!(!ns.covers(&Namespace::all_of("shop")) && !Namespace::all_of("sho").covers(&ns));
    }

    #[test]
    fn exclude_wins_over_include() {
        let filter = filter(&["shop.*"], &["*.sessions"]);

        assert!(filter.matches(&Namespace::new("shop", "orders")));
        assert!(!filter.matches(&Namespace::new("shop", "sessions")));
        assert!(!filter.matches(&Namespace::new("crm", "people")));
    }

    #[test]
    fn a_glob_is_no_regular_expression() {
        let filter = filter(&["a+b.(x)?"], &[]);

        assert!(filter.matches(&Namespace::new("a+b", "(x)y")));
        assert!(!filter.matches(&Namespace::new("aab", "xy")));
    }

    #[test]
    fn internal_namespaces_never_match() {
        let filter = filter(&[], &[]);

        for ns in
            ["admin.x", "local.oplog.rs", "config.a", "shop.system.views", "outrigger.replicas"]
        {
            assert!(!filter.matches(&ns.parse().unwrap()), "{ns}");
        }
    }

    #[test]
    fn what_is_in_the_way_of_the_lease_is_left_out_and_another_place_for_the_lease_lets_it_in() {
        let usual = filter(&[], &["outrigger.skipped"]);
        let moved = usual.clone().with_state_database("state");
        for (name, is_usual, is_moved) in [
            ("outrigger.replicas", false, true),
            ("outrigger.restore", false, true),
            ("outrigger.orders", true, true),
            ("Outrigger.orders", false, true),
            ("state.replicas", true, false),
            ("state.restore", true, false),
            ("State.orders", true, false),
            ("outrigger.skipped", false, false),
        ] {
            let ns = name.parse().unwrap();
            assert_eq!((usual.matches(&ns), moved.matches(&ns)), (is_usual, is_moved), "{name}");
            let is_skipped = ns.coll() == "skipped";
            assert_eq!(usual.kept_apart(&ns).is_some(), !is_usual && !is_skipped, "{name}");
        }
        assert_ne!(usual.fingerprint(), moved.fingerprint());
        let back = usual.clone().with_state_database("outrigger");
        assert_eq!(usual.fingerprint(), back.fingerprint());
    }

    #[test]
    fn the_fingerprint_ignores_order_and_notices_change() {
        assert_eq!(
            filter(&["a.*", "b.*"], &[]).fingerprint(),
            filter(&["b.*", "a.*"], &[]).fingerprint()
        );
        assert_ne!(filter(&["a.*"], &[]).fingerprint(), filter(&[], &["a.*"]).fingerprint());
    }
}
