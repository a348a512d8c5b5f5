use super::*;
use crate::queue::QueueOptions;

fn queue() -> (tempfile::TempDir, Queue) {
    let dir = tempfile::TempDir::new().unwrap();
    let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();
    (dir, queue)
}

#[expect(clippy::result_large_err, reason = "of a test")]
fn ask(queue: &Queue) -> Result<SyncState, SyncState> {
    SyncState::request(queue, ClusterTime(10), SyncRequest::default(), Reason::Asked).unwrap()
}

fn load(queue: &Queue) -> SyncState {
    SyncState::load(queue).unwrap().unwrap()
}

fn note(queue: &Queue, running: &mut SyncState, ns: &Namespace, step: CollectionStep) {
    SyncState::note(queue, running.id, ns, &step).unwrap();
    running.step(ns, step);
}

fn finish(queue: &Queue, running: &mut SyncState, ns: &Namespace) {
    note(queue, running, ns, CollectionStep::Finished { is_refused: false });
}

fn plan(splits: i32) -> CopyPlan {
    let splits = (0..splits).map(|n| DocumentKey::from_json(n.into()).unwrap()).collect();
    CopyPlan { splits, is_copy: true, ..CopyPlan::default() }
}

#[test]
fn a_mandatory_sync_that_comes_while_one_runs_is_not_lost_with_its_end() {
    let (_dir, queue) = queue();
    let ns = Namespace::new("shop", "orders");
    SyncState::require(&queue, ClusterTime(10), Reason::FirstCopy).unwrap();
    let mut running = SyncState::load(&queue).unwrap().unwrap();

    SyncState::require(&queue, ClusterTime(20), Reason::HistoryLost).unwrap();
    finish(&queue, &mut running, &ns);

    assert!(!SyncState::complete(&queue, running.id).unwrap());
    let next = SyncState::load(&queue).unwrap().unwrap();
    assert_eq!((next.after(), next.done.len()), (ClusterTime(19), 0));
    assert!(SyncState::complete(&queue, next.id).unwrap());
    assert_eq!(SyncState::load(&queue).unwrap(), None);
}

#[test]
fn a_sync_on_demand_is_refused_while_another_is_open_and_gives_way_to_a_mandatory_one() {
    let (_dir, queue) = queue();
    let first = ask(&queue).unwrap();

    assert_eq!(ask(&queue).unwrap_err().id, first.id);
    assert!(!SyncState::is_owed(&queue).unwrap());

    SyncState::require(&queue, ClusterTime(5), Reason::HistoryLost).unwrap();
    assert_ne!(SyncState::load(&queue).unwrap().unwrap().id, first.id);
    assert_eq!(SyncState::load(&queue).unwrap().unwrap().after(), ClusterTime(9));
    assert_eq!(ask(&queue).unwrap_err().reason, Reason::HistoryLost);
}

#[test]
fn a_sync_on_demand_that_gives_way_to_one_of_other_collections_comes_behind_it() {
    let (_dir, queue) = queue();
    let kept =
        SyncRequest { namespaces: vec!["shop.kept".into()], digest: true, ..Default::default() };
    let of_some = [Namespace::new("shop", "some")].into();
    let asked = SyncState::request(&queue, ClusterTime(10), kept, Reason::Asked);
    let asked = asked.unwrap().unwrap();

    SyncState::require_of(&queue, ClusterTime(20), &of_some, Reason::Replaced).unwrap();
    let owed = load(&queue);
    assert_eq!((&owed.request, &owed.only), (&None, &of_some));
    // What is required beside it, and a restart, leave it there.
    SyncState::require_of(&queue, ClusterTime(30), &of_some, Reason::Renamed).unwrap();
    SyncState::take_again(&queue, owed.id).unwrap();
    SyncState::resume(&queue).unwrap();
    assert!(SyncState::complete(&queue, owed.id).unwrap());

    let next = load(&queue);
    assert_eq!((&next.request, next.reason), (&asked.request, Reason::Asked));
    assert_eq!(next.after(), ClusterTime(29), "as late as what it has waited for");
    assert!(next.id > owed.id, "whoever waits for the first one waits for this");
    assert!(SyncState::complete(&queue, next.id).unwrap());
    assert!(notes_of(&queue).is_empty(), "it comes once");
}

#[test]
fn one_of_everything_that_is_owed_takes_the_place_of_what_was_postponed() {
    let (_dir, queue) = queue();
    let of_some = [Namespace::new("shop", "some")].into();
    let asked = SyncRequest { namespaces: vec!["shop.kept".into()], ..Default::default() };
    SyncState::request(&queue, ClusterTime(10), asked, Reason::Asked).unwrap().unwrap();
    SyncState::require_of(&queue, ClusterTime(20), &of_some, Reason::Replaced).unwrap();

    SyncState::require(&queue, ClusterTime(30), Reason::HistoryLost).unwrap();

    let id = load(&queue).id;
    SyncState::take_again(&queue, id).unwrap();
    assert!(SyncState::complete(&queue, id).unwrap());
    assert!(notes_of(&queue).is_empty());
}

#[test]
fn what_is_asked_for_behind_one_that_is_owed_of_some_collections_is_not_taken_for_done_with_it() {
    let (_dir, queue) = queue();
    let request = |name: &str| SyncRequest { namespaces: vec![name.into()], ..Default::default() };
    let ask = |name| {
        let asked = request(name);
        let asked = SyncState::request_behind(&queue, ClusterTime(10), asked, Reason::Asked);
        asked.unwrap().map_err(Box::new)
    };
    let of_some = [Namespace::new("shop", "some")].into();
    SyncState::require_of(&queue, ClusterTime(20), &of_some, Reason::Replaced).unwrap();
    let owed = load(&queue);

    let asked = ask("shop.kept").unwrap();
    assert!(asked.id > owed.id);
    assert_eq!(ask("shop.other").unwrap_err().request, Some(request("shop.kept")));
    assert_eq!(ask("shop.kept").unwrap().request, Some(request("shop.kept")), "the same is one");
    let cancelled = SyncState::cancel(&queue).unwrap();
    assert!(matches!(cancelled, Cancelled::Done(of) if of.request == Some(request("shop.kept"))));
    assert!(matches!(SyncState::cancel(&queue).unwrap(), Cancelled::IsOwed(_)));
    let asked = ask("shop.kept").unwrap();

    assert!(SyncState::complete(&queue, owed.id).unwrap());
    let next = load(&queue);
    assert_eq!(next.request, Some(request("shop.kept")));
    assert!(next.id > asked.id);
    // What is owed of everything finds the same, and what is on demand is as before.
    assert_eq!(ask("shop.kept").unwrap_err().id, next.id);
}

#[test]
fn a_sync_on_demand_can_be_cancelled_and_a_mandatory_one_cannot() {
    let (_dir, queue) = queue();
    assert_eq!(SyncState::cancel(&queue).unwrap(), Cancelled::NothingRuns);

    let request = ask(&queue).unwrap();
    assert_eq!(SyncState::cancel(&queue).unwrap(), Cancelled::Done(request));
    assert_eq!(SyncState::load(&queue).unwrap(), None);

    SyncState::require(&queue, ClusterTime(5), Reason::FirstCopy).unwrap();
    assert!(matches!(SyncState::cancel(&queue).unwrap(), Cancelled::IsOwed(_)));
    assert!(SyncState::is_owed(&queue).unwrap());
}

#[test]
fn a_rename_while_a_sync_runs_keeps_it_open_until_the_names_are_looked_at_again() {
    let (_dir, queue) = queue();
    let (old, new) = (Namespace::new("shop", "old"), Namespace::new("shop", "new"));
    assert!(!SyncState::renamed(&queue, std::slice::from_ref(&old)).unwrap(), "nothing is open");
    let mut running = ask(&queue).unwrap();
    finish(&queue, &mut running, &new);

    assert!(SyncState::renamed(&queue, &[old.clone(), new.clone()]).unwrap());
    finish(&queue, &mut running, &old);
    assert!(!SyncState::complete(&queue, running.id).unwrap());

    assert_eq!(SyncState::take_again(&queue, running.id).unwrap(), [new, old].into());
    assert!(load(&queue).done.is_empty());
    assert!(SyncState::complete(&queue, running.id).unwrap());
}

#[test]
fn the_note_of_an_earlier_version_is_read() {
    let (_dir, queue) = queue();
    queue.set_meta(META, Some(br#"{"demand":3,"after":7,"done":["shop.orders"]}"#)).unwrap();

    let state = SyncState::load(&queue).unwrap().unwrap();
    assert_eq!(
        (state.after(), state.done.len(), state.request.is_none()),
        (ClusterTime(7), 1, true)
    );
    assert!(SyncState::complete(&queue, state.id).unwrap());
}

/// All that is noted of a sync.
fn notes_of(queue: &Queue) -> BTreeMap<String, Vec<u8>> {
    queue.metas_below(META).unwrap().into_iter().collect()
}

/// What is written for the copy of so many collections, of so many ranges each: notes, and their bytes.
fn written(collections: usize, ranges: usize) -> (usize, usize) {
    let (_dir, queue) = queue();
    SyncState::require(&queue, ClusterTime(10), Reason::FirstCopy).unwrap();
    let mut running = load(&queue);
    let mut before = notes_of(&queue);
    let (mut notes, mut bytes) = (0, 0);
    let all: Vec<_> =
        (0..collections).map(|n| Namespace::new("shop", &format!("orders{n:04}"))).collect();
    let begun = all.iter().map(|ns| (ns, CollectionStep::Begun(plan(ranges as i32 - 1))));
    let done =
        all.iter().flat_map(|ns| (0..ranges).map(move |n| (ns, CollectionStep::RangeDone(n))));
    let finished = all.iter().map(|ns| (ns, CollectionStep::Finished { is_refused: false }));
    for (ns, step) in begun.chain(done).chain(finished) {
        note(&queue, &mut running, ns, step);
        let after = notes_of(&queue);
        for (name, value) in &after {
            if before.get(name) != Some(value) {
                (notes, bytes) = (notes + 1, bytes + name.len() + value.len());
            }
        }
        before = after;
    }
    assert_eq!(load(&queue), running);
    assert!(SyncState::complete(&queue, running.id).unwrap());
    assert!(!notes_of(&queue).keys().any(|name| name.starts_with(META)), "nothing stays");
    (notes, bytes)
}

#[test]
fn what_is_noted_of_a_copy_grows_as_its_collections_and_ranges() {
    let few = written(20, 4);

    assert_eq!(few.0, 20 * (1 + 4 + 1), "one note for each step");
    let more = written(60, 4);
    assert_eq!((more.0, more.1), (3 * few.0, 3 * few.1), "three times as many collections");
    let wider = written(20, 12);
    assert_eq!(wider.0, 20 * (1 + 12 + 1));
    assert!(wider.1 < 3 * few.1 + few.1 / 4, "{wider:?}, three times as many ranges as {few:?}");
}

#[test]
fn what_becomes_of_a_collection_is_read_again_after_a_restart() {
    let (dir, queue) = queue();
    SyncState::require(&queue, ClusterTime(10), Reason::FirstCopy).unwrap();
    let mut running = load(&queue);
    let [a, b, c] = ["a", "b", "c"].map(|name| Namespace::new("shop", name));
    for ns in [&a, &b, &c] {
        note(&queue, &mut running, ns, CollectionStep::Begun(plan(3)));
        note(&queue, &mut running, ns, CollectionStep::RangeDone(2));
    }
    note(&queue, &mut running, &a, CollectionStep::Finished { is_refused: true });
    note(&queue, &mut running, &b, CollectionStep::Forgotten);
    note(&queue, &mut running, &b, CollectionStep::Begun(plan(1)));
    drop(queue);

    let queue = Queue::open(&QueueOptions::new(dir.path().join("queue"))).unwrap();

    let again = SyncState::resume(&queue).unwrap().unwrap();
    assert_eq!(again, running);
    assert_eq!(again.refused, [a].into());
    assert_eq!((again.begun[&b].done.len(), again.begun[&c].done.len()), (0, 1));
}

#[test]
fn what_a_run_notes_that_was_replaced_is_of_no_other() {
    let (_dir, queue) = queue();
    let ns = Namespace::new("shop", "orders");
    let of_some = [Namespace::new("shop", "some")].into();
    SyncState::require_of(&queue, ClusterTime(10), &of_some, Reason::Replaced).unwrap();
    let mut running = load(&queue);
    assert!(running.is_of_some);

    SyncState::require(&queue, ClusterTime(20), Reason::HistoryLost).unwrap();
    note(&queue, &mut running, &ns, CollectionStep::Begun(plan(2)));
    finish(&queue, &mut running, &ns);

    let next = load(&queue);
    assert!(next.done.is_empty() && next.begun.is_empty() && next.only.is_empty());
    assert_eq!(next.again, of_some, "what was to be copied as a whole still is");
    assert!(SyncState::take_again(&queue, running.id).unwrap().is_empty());
    assert_eq!(SyncState::take_again(&queue, next.id).unwrap(), of_some);
    assert!(SyncState::complete(&queue, next.id).unwrap());
    assert!(!notes_of(&queue).keys().any(|name| name.starts_with(META)), "nothing stays");
}

#[test]
fn a_run_that_an_earlier_build_began_goes_on_in_the_present_form() {
    let (_dir, queue) = queue();
    let old = br#"{"id":"0193a5b0-0000-7000-8000-000000000000","after":7,"reason":"replaced","since_ms":5,
        "request":null,"only":["shop.a","shop.b","shop.c"],"done":["shop.a"],"refused":["shop.a"],"again":["shop.c"],
        "begun":{"shop.b":{"splits":[],"done":[0],"is_copy":true}}}"#;
    queue.set_meta(META, Some(old)).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| Namespace::new("shop", name));
    // What comes before it goes on is added to it.
    SyncState::renamed(&queue, std::slice::from_ref(&a)).unwrap();
    let read = load(&queue);

    let resumed = SyncState::resume(&queue).unwrap().unwrap();

    assert_eq!(resumed, read);
    assert!(resumed.is_of_some && resumed.begun[&b].done.contains(&0));
    assert_eq!(resumed.only.len(), 3);
    assert_eq!(load(&queue), resumed, "read again, it is the same");
    let run = queue.meta(META).unwrap().unwrap();
    assert!(!String::from_utf8(run).unwrap().contains("shop."), "each collection has its own note");
    assert_eq!(SyncState::take_again(&queue, resumed.id).unwrap(), [a, c].into());
    assert!(load(&queue).done.is_empty());
}

#[test]
fn a_database_that_is_required_has_all_its_collections_looked_at_again() {
    let (_dir, queue) = queue();
    SyncState::require(&queue, ClusterTime(10), Reason::FirstCopy).unwrap();
    let mut running = load(&queue);
    let [a, b, other] = ["shop.a", "shop.b", "shops.a"].map(|ns| ns.parse::<Namespace>().unwrap());
    for ns in [&a, &b, &other] {
        finish(&queue, &mut running, ns);
    }
    let all = BTreeSet::from([Namespace::all_of("shop")]);

    SyncState::require_of(&queue, ClusterTime(20), &all, Reason::Unanswered).unwrap();

    assert_eq!(SyncState::take_again(&queue, running.id).unwrap(), all);
    assert_eq!(load(&queue).done, [other].into());
}

#[test]
fn what_a_run_has_left_is_owed_by_all_its_names_until_it_is_required() {
    let (_dir, queue) = queue();
    let names = |names: &[&str]| -> BTreeSet<Namespace> {
        names.iter().map(|name| Namespace::new("shop", name)).collect()
    };
    behind::note(&queue, &names(&["a", "b"])).unwrap();
    SyncState::renamed(&queue, &[Namespace::new("shop", "b"), Namespace::new("shop", "c")])
        .unwrap();
    SyncState::renamed(&queue, &[Namespace::new("shop", "x"), Namespace::new("shop", "y")])
        .unwrap();
    assert_eq!(behind::noted(&queue).unwrap(), names(&["a", "b", "c"]));
    assert!(SyncState::is_owed(&queue).unwrap());

    let free = names(&["b", "c"]);
    behind::require(&queue, ClusterTime(10), &free, Reason::Renamed).unwrap();

    assert_eq!(load(&queue).only, free);
    assert_eq!(behind::noted(&queue).unwrap(), names(&["a"]));
}

/// Each pair of reasons, whichever came first: what one of them means is not forgotten for the other.
#[test]
fn each_reason_that_lasts_is_known_until_everything_is_compared() {
    use Reason::{HistoryLost, NamespacesChanged, NewTarget, PutBack, Unshowable};
    let all = [HistoryLost, NamespacesChanged, NewTarget, PutBack, Unshowable];
    for (first, second, third) in all
        .into_iter()
        .flat_map(|first| all.map(|second| (first, second)))
        .flat_map(|(first, second)| all.map(|third| (first, second, third)))
    {
        let (_dir, queue) = queue();
        let required = [first, second, third];
        SyncState::require(&queue, ClusterTime(10), first).unwrap();
        let orders = Namespace::new("shop", "orders");
        SyncState::require_of(&queue, ClusterTime(11), &[orders].into(), second).unwrap();
        SyncState::require(&queue, ClusterTime(12), third).unwrap();

        let is_put_back = SyncState::is_put_back(&queue).unwrap();
        let is_unshowable = SyncState::is_unshowable(&queue).unwrap();
        let open = load(&queue);
        assert_eq!(is_put_back, required.contains(&PutBack), "{required:?}");
        assert_eq!(is_unshowable, required.contains(&Unshowable), "{required:?}");
        let is_told_twice = open.also.contains(&open.reason);
        assert!(!open.also.contains(&HistoryLost) && !is_told_twice, "{required:?}: {open:?}");
        let another = [NewTarget, PutBack, NamespacesChanged];
        assert_eq!(
            open.is_of_another(),
            another.iter().any(|reason| required.contains(reason)),
            "{required:?}"
        );
        SyncState::take_again(&queue, open.id).unwrap();
        assert!(SyncState::complete(&queue, open.id).unwrap());
        assert!(!SyncState::is_put_back(&queue).unwrap() && !SyncState::is_owed(&queue).unwrap());
    }
}

#[test]
fn what_a_person_asked_for_says_nothing_of_another_atlas() {
    let (_dir, queue) = queue();
    let asked = ask(&queue).unwrap();

    assert!(!asked.is_of_another());
}

#[test]
fn a_sync_that_is_owed_says_why_and_since_when() {
    let (_dir, queue) = queue();
    let begun_ms = now_ms();

    SyncState::require(&queue, ClusterTime(5), Reason::FirstCopy).unwrap();

    let owed = load(&queue);
    assert!((begun_ms..=now_ms()).contains(&owed.since_ms));
    assert_eq!(owed.reason.to_string(), "the first copy");
}
