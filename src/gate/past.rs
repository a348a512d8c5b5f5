//! What a look at the local database proves: the rules, as a table.
//!
//! A replica set's id is drawn at random when the set is initiated, so it tells two sets apart, and not a set
//! from an older state of itself. That is told by the *anchor*: an entry of the oplog that was there before.
//! What is restored goes on from an older state, and its entries from then on are others.
//!
//! The oplog forgets its oldest entries. One that begins after the anchor may have rolled over it; then all
//! there is to do is to compare everything. Or it began its life after it: then its very first entry says
//! `initiating set`, and the server resumes any older position there without a word, since nothing can have
//! fallen off such an oplog (server source: `CollectionScan::assertTsHasNotFallenOffOplog`, `collection_scan.cpp`).

use crate::model::checkpoint::ClusterTime;

/// What is known of the database that the queue was filled from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// As [`Evidence::set_id`].
    pub set_id: String,
    /// See [`Gate::anchor`](crate::gate::Gate::anchor). 0: none is known.
    pub anchor: ClusterTime,
    /// Everything up to here has been read. 0: nothing has.
    pub position: ClusterTime,
}

/// What a look at the server of the moment has brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// The replica set's id, or `set:NAME` where it may not be read.
    pub set_id: String,
    pub is_primary: bool,
    /// The time of the last operation that the server has made.
    pub now: ClusterTime,
    /// The last entry of the oplog that a majority has.
    pub last_entry: Option<ClusterTime>,
    /// `None` where the oplog may not be read.
    pub oplog: Option<Oplog>,
}

/// The oplog, seen from the anchor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Oplog {
    /// The first entry at or after the anchor, looked for before the oldest: what has rolled away between the
    /// two looks counts as rolled away.
    pub next: Option<ClusterTime>,
    /// The oldest entry, and whether it is the set's very first.
    pub oldest: Option<(ClusterTime, bool)>,
}

/// What the evidence says of the database that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is the database that is known, with the same past as far as that can be told.
    Same,
    /// It is that database, and its oplog has rolled over what is known of it.
    RolledOver,
    /// Another replica set.
    OtherDatabase,
    /// The same set with another past: it was restored, or wiped and initiated anew.
    OtherPast,
    /// A member that has not come so far yet.
    NotYet,
}

/// The id of a set where it could not be read: its name tells less.
pub fn by_name(set_name: &str) -> String {
    format!("set:{set_name}")
}

/// True for an id that is only the name of the set.
pub fn is_by_name(set_id: &str) -> bool {
    set_id.starts_with("set:")
}

/// The rules of this module; the `match` at the end is the table.
pub fn judge(known: &Known, seen: &Evidence) -> Finding {
    // One id may be the real one and the other only the set's name, where the user was given, or lost, the right to
    // read it. Such two always differ, and the right database would be refused as another: the past alone tells then.
    let is_comparable = is_by_name(&known.set_id) == is_by_name(&seen.set_id);
    if is_comparable && known.set_id != seen.set_id {
        return Finding::OtherDatabase;
    }
    // A primary has everything that a majority had, so what it lacks was never in this database. A secondary may only
    // lag behind.
    let behind = if seen.is_primary { Finding::OtherPast } else { Finding::NotYet };
    // A server that tells no time is asked again.
    if seen.now == ClusterTime::default() && known.position > ClusterTime::default() {
        return Finding::NotYet;
    }
    // A new stream's position is one tick ahead of the last operation (server source: it starts at "last applied + 1").
    if seen.now.0.saturating_add(1) < known.position.0 {
        return behind;
    }
    let Some(oplog) = seen.oplog.filter(|_| known.anchor > ClusterTime::default()) else {
        return Finding::Same;
    };
    match (oplog.next, oplog.oldest) {
        (None, _) => behind,
        (Some(next), _) if next == known.anchor => Finding::Same,
        (Some(_), Some((oldest, _))) if oldest <= known.anchor => Finding::OtherPast,
        (Some(_), Some((_, true))) => Finding::OtherPast,
        (Some(_), Some((_, false)) | None) => Finding::RolledOver,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: ClusterTime = ClusterTime(100);

    fn judged(next: Option<u64>, oldest: Option<(u64, bool)>, is_primary: bool) -> Finding {
        let known = Known { set_id: "a".to_owned(), anchor: KNOWN, position: ClusterTime(101) };
        let oldest = oldest.map(|(time, is_first)| (ClusterTime(time), is_first));
        let oplog = Some(Oplog { next: next.map(ClusterTime), oldest });
        judge(
            &known,
            &Evidence {
                set_id: "a".to_owned(),
                is_primary,
                now: ClusterTime(500),
                oplog,
                last_entry: None,
            },
        )
    }

    #[test]
    fn the_anchor_proves_the_past() {
        assert_eq!(judged(Some(100), Some((1, true)), true), Finding::Same);
        assert_eq!(judged(Some(100), Some((50, false)), false), Finding::Same);
    }

    #[test]
    fn a_restored_database_goes_on_without_the_anchor() {
        assert_eq!(judged(Some(130), Some((50, false)), true), Finding::OtherPast);
        assert_eq!(judged(Some(130), Some((1, true)), true), Finding::OtherPast);
    }

    #[test]
    fn a_set_that_was_initiated_anew_began_after_the_anchor() {
        assert_eq!(judged(Some(130), Some((130, true)), true), Finding::OtherPast);
        assert_eq!(judged(Some(130), Some((130, true)), false), Finding::OtherPast);
    }

    #[test]
    fn an_oplog_that_rolled_over_is_no_other_past() {
        assert_eq!(judged(Some(130), Some((130, false)), true), Finding::RolledOver);
    }

    #[test]
    fn a_primary_without_the_anchor_was_restored_and_a_secondary_may_lag() {
        assert_eq!(judged(None, Some((1, true)), true), Finding::OtherPast);
        assert_eq!(judged(None, Some((1, true)), false), Finding::NotYet);
    }

    #[test]
    fn another_set_is_another_database_whatever_its_oplog_says() {
        let known = Known { set_id: "a".to_owned(), anchor: KNOWN, position: KNOWN };
        let oplog = Some(Oplog { next: Some(KNOWN), oldest: Some((ClusterTime(1), true)) });
        let seen = |set_id: &str| Evidence {
            set_id: set_id.to_owned(),
            is_primary: true,
            now: ClusterTime(500),
            last_entry: None,
            oplog,
        };

        assert_eq!(judge(&known, &seen("b")), Finding::OtherDatabase);
        assert_eq!(judge(&known, &seen("set:rs")), Finding::Same, "not comparable");
    }

    #[test]
    fn a_server_whose_time_is_behind_what_was_read_has_another_past() {
        let known = Known { set_id: "a".to_owned(), anchor: KNOWN, position: ClusterTime(101) };
        let seen = |now, is_primary| Evidence {
            set_id: "a".to_owned(),
            is_primary,
            now: ClusterTime(now),
            last_entry: None,
            oplog: None,
        };

        assert_eq!(judge(&known, &seen(100, true)), Finding::Same, "the stream is a tick ahead");
        assert_eq!(judge(&known, &seen(99, true)), Finding::OtherPast);
        assert_eq!(judge(&known, &seen(99, false)), Finding::NotYet);
    }

    #[test]
    fn where_nothing_is_known_or_readable_the_id_must_do() {
        let seen = Evidence { set_id: "a".to_owned(), is_primary: true, ..Evidence::default() };
        let known = Known { set_id: "a".to_owned(), ..Known::default() };

        assert_eq!(judge(&known, &seen), Finding::Same);
    }
}
