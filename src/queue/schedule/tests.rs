use super::*;

/// Three entries of one namespace, of which a batch has the first, while another one is gathered.
fn gathering(in_order: bool) -> (Schedule, Namespace) {
    let (mut schedule, ns) = (Schedule::default(), Namespace::new("shop", "orders"));
    schedule.keep_in_order(&ns, in_order);
    for _ in 1..=3 {
        schedule.lines.added(&ns);
    }
    schedule.batch_begins();
    take(&mut schedule, &ns, 1);
    schedule.batch_begins();
    (schedule, ns)
}

fn is_admitted(schedule: &mut Schedule, ns: &Namespace, seq: u64) -> bool {
    schedule.admit(std::slice::from_ref(ns), seq, Some(seq))
}

fn take(schedule: &mut Schedule, ns: &Namespace, seq: u64) {
    assert!(is_admitted(schedule, ns, seq));
    let lease =
        Leased { version: 1, document: Some(seq), successor: None, ns: ns.clone(), bytes: 1 };
    schedule.lease(seq, lease);
}

#[test]
fn an_order_that_ends_while_a_batch_is_gathered_leaves_nothing_behind() {
    let (mut schedule, ns) = gathering(true);
    assert!(!is_admitted(&mut schedule, &ns, 2), "another batch has an older one");

    schedule.keep_in_order(&ns, false);

    assert_eq!(schedule.next_ready(0), Some(2));
    take(&mut schedule, &ns, 2);
    take(&mut schedule, &ns, 3);
}

#[test]
fn an_order_that_begins_while_a_batch_is_gathered_holds_for_it() {
    let (mut schedule, ns) = gathering(false);

    schedule.keep_in_order(&ns, true);
    assert!(!is_admitted(&mut schedule, &ns, 2) && schedule.next_ready(0).is_none());

    schedule.unlease(1);
    schedule.batch_begins();
    assert_eq!(schedule.next_ready(0), Some(2));
    take(&mut schedule, &ns, 2);
}
/// An entry is met, read from the disk, and admitted: its namespace may be let go in between.
#[test]
fn an_entry_that_is_met_before_its_namespace_is_let_go_overtakes_none_in_front_of_it() {
    let (mut schedule, ns) = (Schedule::default(), Namespace::new("shop", "log"));
    schedule.keep_in_order(&ns, true);
    for _ in 1..=3 {
        schedule.lines.added(&ns);
    }
    schedule.wait_for_stream(&ns, ClusterTime(5));
    schedule.batch_begins();
    assert!(!is_admitted(&mut schedule, &ns, 1) && !is_admitted(&mut schedule, &ns, 2));

    schedule.stream_reached(ClusterTime(5));
    assert!(!is_admitted(&mut schedule, &ns, 3));

    for seq in 1..=3 {
        assert_eq!(schedule.next_ready(0), Some(seq));
        take(&mut schedule, &ns, seq);
    }
}
