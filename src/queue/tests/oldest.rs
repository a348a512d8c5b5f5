//! How long the oldest change waits.

use super::*;

#[test]
fn the_oldest_change_is_looked_for_behind_a_few_that_were_rejected() {
    let (_dir, queue) = fresh();
    let at = |id: i32, wall_ms| Incoming { wall_ms, ..insert(id, 1) };
    let oldest = || queue.oldest().unwrap().but_for_retries_ms;
    let back = Outcome::Retry { due_ms: 10, error: "no".into() };
    queue.commit(vec![at(1, 100)], None).unwrap();
    ack(&queue, &lease(&queue), &back);
    assert_eq!((oldest(), queue.oldest_ms().unwrap()), (None, Some(100)));

    queue.commit(vec![at(2, 200)], None).unwrap();
    assert_eq!((oldest(), queue.oldest_ms().unwrap()), (Some(200), Some(100)));

    // So many are no single ones any more.
    queue.commit((3..40).map(|id| at(id, 300)).collect(), None).unwrap();
    ack(&queue, &lease(&queue), &back);
    assert_eq!(oldest(), Some(100));
}
