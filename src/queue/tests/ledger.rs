//! What is answered while somebody walks through the store.

use std::{sync::mpsc, time::Duration};

use super::*;

#[test]
fn what_async_code_asks_is_answered_while_somebody_walks_through_the_store() {
    let (_dir, queue) = fresh();
    let queue = std::sync::Arc::new(queue);
    queue.commit(vec![insert(1, 1), insert(2, 1)], None).unwrap();
    let walk = queue.lock();

    let (told, answer) = mpsc::channel();
    let asked = queue.clone();
    std::thread::spawn(move || {
        let (queue, ns) = (asked, ns());
        queue.hold(&ns);
        queue.release(&ns);
        queue.hold_all();
        queue.release_all();
        queue.keep_capped_in_order(&ns, true);
        queue.keep_capped_in_order(&ns, queue.is_leased(&ns));
        queue.wait_for_stream(&ns, ClusterTime(1));
        queue.stream_reached(ClusterTime(1));
        queue.no_longer_behind("away");
        queue.keep_apart((*queue.kept_apart()).clone());
        let key = DocumentKey::of(&rawdoc! { "_id": 1 }).unwrap();
        drop(queue.reserve(&ns, [&key]));
        queue.seen((&ns, 0), &ns, None, ClusterTime(1));
        let names = queue.called_now(&ns, [0, 1].into_iter());
        assert_eq!(names, [Some(ns.clone()), Some(ns.clone())]);
        assert_eq!(queue.proof(&ns, None, ClusterTime(1)), Proof::Proven);
        assert!(!queue.waits_for_proof(&ns, ClusterTime(1)) && !queue.has_turned(&ns, 0));
        assert!(!queue.has_barrier(&ns) && !queue.is_in_order(&ns));
        assert_eq!(queue.behind([ns.clone()].into()), [ns.clone()].into());
        assert_eq!(queue.pending_by_namespace(), [(ns.clone(), 2)].into());
        assert_eq!((queue.pending_of(&ns), queue.pending().0), (2, 2));
        assert_eq!((queue.ready(), queue.waiting(), queue.dead_letters_len()), (2, 2, 0));
        assert_eq!((queue.idle_until(0), queue.position()), (None, 2));
        assert!(queue.progress().is_some());
        told.send(()).unwrap();
    });

    answer.recv_timeout(Duration::from_secs(60)).expect("an answer, with no look at the disk");
    drop(walk);
}
