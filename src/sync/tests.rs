//! What a failure of a sync means to whoever decides, and to whoever reads it.

use super::*;
use crate::{model::hint::Hint, side::fake_schema::FakeSchemas, source::Cause};

fn cause() -> Cause {
    Cause::Other("it says so".to_owned())
}

fn text() -> String {
    "it says so".to_owned()
}

fn local(is_away: bool) -> SyncError {
    SyncError::LocalTarget { problem: text(), is_away }
}

/// The questions that are answered with yes.
fn answers(error: impl Into<SyncError>) -> Vec<&'static str> {
    let error = error.into();
    let asked = [
        ("transient", error.is_transient()),
        ("unavailable", error.is_unavailable()),
        ("rejected", error.is_rejected()),
        ("of ownership", error.is_of_ownership()),
    ];
    asked.into_iter().filter(|(_, answer)| *answer).map(|(question, _)| question).collect()
}

#[test]
fn an_end_that_is_away_is_waited_for() {
    let dropped = SinkError::DropUnanswered { db: text(), problem: text() };
    let overtaken = SourceError::Overtaken { what: "it is another one", source: cause() };
    for away in [
        SourceError::Unavailable(cause()).into(),
        SourceError::HistoryLost(cause()).into(),
        overtaken.into(),
        SinkError::Unavailable(text()).into(),
        SinkError::Unanswered(text()).into(),
        dropped.into(),
        local(true),
        SyncError::Outdated,
    ] {
        assert_eq!(answers(away), ["transient", "unavailable"]);
    }
}

#[test]
fn what_was_understood_and_refused_is_tried_again_and_is_no_outage() {
    assert_eq!(answers(SourceError::Failed(cause())), ["transient", "rejected"]);
    for refusal in [SinkError::Rejected(text()), SinkError::Held(text()), SinkError::Gone(text())] {
        assert_eq!(answers(refusal), ["transient", "rejected"]);
    }
    assert_eq!(answers(SinkError::Denied(text())), ["transient"], "a person may grant it");
    let unfit = SourceError::Unfit { problem: text(), hint: text() };
    assert_eq!(answers(SideError::Source(unfit)), [""; 0]);
    assert_eq!(answers(local(false)), [""; 0]);
    assert_eq!(answers(SyncError::Stopped), [""; 0]);
}

/// Each refusal of a target, with a word of what is to be done about it.
fn of_ownership() -> Vec<(SyncError, &'static str)> {
    let held = |is_fresh| {
        let (host, heartbeat) = (text(), text());
        SyncError::LeaseHeld { host, pid: 1, heartbeat, is_fresh }
    };
    vec![
        (SyncError::NotOwned { problem: text() }, "`outrigger run --adopt`"),
        (SyncError::SameDatabase(same::Same::Process), "MONGODB_LOCAL_URI"),
        (SyncError::Overlap { problem: text() }, "`namespaces.include`"),
        (SyncError::Ring { problem: text() }, "one direction only"),
        (held(true), "stop that agent first"),
        (held(false), "if it will not come back"),
    ]
}

#[test]
fn a_target_that_is_not_ours_is_told_with_what_to_do_and_never_tried_again() {
    for (error, hint) in of_ownership() {
        assert!(error.hint().is_some_and(|told| told.contains(hint)), "{error}: {hint}");
        assert_eq!(answers(error), ["of ownership"]);
    }
}

#[test]
fn each_failure_says_what_to_do_next() {
    let other = |pattern: &str| {
        let (pattern, nearest) = (pattern.to_owned(), None);
        SyncError::NothingMatches(Unmatched { pattern, nearest, is_left_out: false })
    };
    for (error, hint) in [
        (SourceError::Failed(cause()).into(), "the local server's log"),
        (SinkError::Denied(text()).into(), "`outrigger roles`"),
        (SyncError::Queue(QueueError::Outdated), ""),
        (other("shop"), "`database.collection`"),
        (SyncError::NoDigest { end: SideName::Atlas }, "without --digest"),
        (local(true), "`outrigger restore` again"),
        (SyncError::Outdated, ""),
    ] {
        let told = error.hint().unwrap_or_default();
        assert!(!told.is_empty() && told.contains(hint), "{error}: {told}");
    }
    let ns = Namespace::new("shop", "orders");
    for (error, hint) in [
        (RestoreError::Sync(SyncError::Stopped), "goes on where it was"),
        (RestoreError::Sync(local(true)), "when it does"),
        (RestoreError::NotEmpty { ns: ns.clone() }, "into an empty database"),
        (RestoreError::AlreadyThere { ns }, "nothing to drop"),
        (RestoreError::Another { origin: text() }, "`outrigger.restore`"),
        (RestoreError::NoDocuments, "`exact = \"raw\"`"),
        (RestoreError::Nothing, "MONGODB_ATLAS_URI"),
    ] {
        assert!(error.hint().is_some_and(|told| told.contains(hint)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_its_time_or_with_the_agent() {
    let (stop, second) = (Stop::default(), Duration::from_secs(1));
    assert!(pause(&stop, second).await.is_ok());

    stop.leave.cancel();
    assert!(matches!(pause(&stop, second).await, Err(SyncError::Stopped)));
}

#[tokio::test]
async fn a_pattern_is_looked_up_on_both_sides() {
    let (local, atlas) = (FakeSchemas::at(1), FakeSchemas::at(1));
    local.has(&Namespace::new("shop", "orders"), &[]);
    atlas.has(&Namespace::new("shop", "gone"), &[]);
    let filter = NamespaceFilter::new(&[], &[]).unwrap();
    let patterns = ["shop.orders", "shop.gone", "shop.ordres", "nowhere.else"].map(str::to_owned);

    let nothing = nothing_of(&patterns, &local, &atlas, &filter).await.unwrap();

    assert_eq!(nothing.pattern, "shop.ordres");
    assert!(nothing.as_include().ends_with("did you mean `shop.orders`?"));
    assert_eq!(nothing_of(&patterns[..2], &local, &atlas, &filter).await, None);
    let far = nothing_of(&patterns[3..], &local, &atlas, &filter).await.unwrap();
    assert_eq!(far.as_include(), "`nowhere.else`: no collection matches it");
}

#[tokio::test]
async fn two_sides_are_told_apart_before_anything_is_made_and_atlas_may_be_silent() {
    let (local, atlas) = (FakeSchemas::at(1), FakeSchemas::at(1));
    assert!(same::check_early(&local, &atlas).await.is_ok());

    for side in [&local, &atlas] {
        let set_id = Some("one".to_owned());
        side.looks_like(crate::side::Looks { set_id, ..crate::side::Looks::default() });
    }
    let same = same::check_early(&local, &atlas).await;
    assert!(matches!(same, Err(SyncError::SameDatabase(same::Same::Set { .. }))));
}
