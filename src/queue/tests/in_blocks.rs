//! Entries in blocks: how many there are, what is moved, and what a damaged one is.

use super::*;

#[test]
fn small_commits_do_not_leave_small_blocks() {
    let (dir, queue) = fresh();
    for id in 0..500 {
        queue.commit(vec![insert(id, 1)], None).unwrap();
    }
    for id in (0..500).step_by(5) {
        queue.commit(vec![set(id, 2)], None).unwrap();
    }

    let blocks = queue.store.db().scan_prefix([layout::HOME]).count();
    let moved = queue.store.db().scan_prefix([layout::MOVED]).count();
    assert!(blocks < 40 && moved < 20, "{blocks} blocks at home, {moved} moved");
    drop(queue);
    let entries = lease(&open(&dir));
    assert_eq!(ids(&entries), (0..500).collect::<Vec<i64>>(), "in their order");
    assert_eq!(op(&entries[5]), &WriteOp::Insert(doc(5, 2)));
}

#[test]
fn what_is_gone_takes_no_more_room_than_what_lives() {
    let (_dir, queue) = fresh();
    let text = "x".repeat(300);
    let large = |id: i32| change(id, WriteOp::Insert(rawdoc! { "_id": id, "text": text.as_str() }));
    queue.commit((0..3_000).map(large).collect(), None).unwrap();

    // Hot documents among cold ones, over and over.
    for v in 0..40 {
        queue.commit((0..3_000).step_by(3).map(|id| set_text(id, v)).collect(), None).unwrap();
    }
    let leased = lease(&queue);
    let kept = leased.iter().filter(|entry| entry.seq % 50 != 7).cloned().collect::<Vec<_>>();
    ack(&queue, &kept, &Outcome::Applied);

    let stored: usize = [layout::HOME, layout::MOVED]
        .iter()
        .flat_map(|kind| queue.store.db().scan_prefix([*kind]))
        .map(|item| block::unpack(&*item.unwrap().1).unwrap().len())
        .sum();
    let pending = queue.pending().1 as usize;
    assert!(stored < 2 * pending + 2 * block::BYTES_MAX, "{stored} bytes for {pending}");
}

fn set_text(id: i32, v: i32) -> Incoming {
    let text = format!("{v:300}");
    change(id, WriteOp::Update(Delta::from_diff(&rawdoc! { "u": { "text": text } }).unwrap()))
}

#[test]
fn a_document_larger_than_a_piece_survives_changes_and_a_restart() {
    let (dir, queue) = fresh();
    let noise: String = (0..200_000).map(|_| fastrand::alphanumeric()).collect();
    let large = |v: i32| rawdoc! { "_id": 1, "v": v, "x": noise.as_str() };
    queue.commit(vec![change(1, WriteOp::Insert(large(1))), insert(2, 1)], None).unwrap();
    queue.commit(vec![set(1, 2)], None).unwrap();
    assert!(queue.store.db().scan_prefix([layout::MOVED]).count() > 4, "in pieces");
    drop(queue);

    let queue = open(&dir);
    let entries = lease(&queue);
    assert_eq!(op(&entries[0]), &WriteOp::Insert(large(2)));
    ack(&queue, &entries, &Outcome::Applied);

    let left =
        queue.store.db().iter().filter(|item| item.as_ref().unwrap().0[0] > layout::DEAD).count();
    assert_eq!((queue.pending(), left), ((0, 0), 0));
    drop(queue);
    assert_eq!(open(&dir).pending(), (0, 0));
}

/// While a collection was copied its changes came one by one and were looked at, so each had a block of its own. After
/// a restart none had been looked at, and the next commit put all of them into one batch.
#[test]
fn a_commit_joins_no_more_small_blocks_than_make_a_full_one() {
    let (dir, queue) = fresh();
    queue.hold(&ns());
    for id in 0..400 {
        queue.commit(vec![insert(id, 1)], None).unwrap();
        assert_eq!(lease(&queue), []);
    }
    drop(queue);
    let queue = open(&dir);
    let blocks = || queue.store.db().scan_prefix([layout::HOME]).count();
    assert_eq!(blocks(), 400);

    queue.commit(vec![insert(400, 1)], None).unwrap();
    assert!(blocks() > 300, "{} blocks", blocks());

    let entries = lease(&queue);
    assert_eq!(ids(&entries), (0..=400).collect::<Vec<i64>>());
}

#[test]
fn a_document_that_moved_and_came_again_is_one_after_a_restart() {
    let (dir, queue) = fresh();
    queue.commit((0..100).map(|id| insert(id, 1)).collect(), None).unwrap();
    queue.commit((0..100).step_by(3).map(|id| set(id, 2)).collect(), None).unwrap();
    let leased = queue.lease(50, usize::MAX, 0).unwrap().entries;
    // Each has an entry that waits behind the leased one.
    queue.commit((0..50).map(|id| set(id, 3)).collect(), None).unwrap();
    assert_eq!((leased.len(), queue.pending().0), (50, 150));
    drop(queue);

    let entries = lease(&open(&dir));

    assert_eq!(ids(&entries), (0..100).collect::<Vec<i64>>());
    assert!(entries[..50].iter().all(|entry| match op(entry) {
        WriteOp::Insert(doc) => doc.get_i32("v").unwrap() == 3,
        _ => false,
    }));
}

#[test]
fn a_damaged_block_is_an_error_and_no_panic() {
    let (dir, queue) = fresh();
    queue.commit((0..100).map(|id| insert(id, 1)).collect(), None).unwrap();
    queue.commit((0..100).step_by(2).map(|id| set(id, 2)).collect(), None).unwrap();
    let damaged = |change: &dyn Fn(&sled::Db)| {
        let copy = TempDir::new().unwrap();
        queue.flush().unwrap();
        copy_dir(&dir.path().join("queue"), &copy.path().join("queue"));
        let db = files::open_sled(&QueueOptions::new(copy.path().join("queue"))).unwrap();
        change(&db);
        drop(db);
        let opened = Queue::open(&QueueOptions::new(copy.path().join("queue")));
        assert!(opened.err().is_some_and(|error| error.is_damage()));
    };
    let (home, moved) = (blocks::BlockId::Home(0), blocks::BlockId::Moved(0));

    damaged(&|db| drop(db.remove(layout::block_key(home)).unwrap()));
    damaged(&|db| drop(db.remove(layout::block_key(moved)).unwrap()));
    damaged(&|db| drop(db.remove(layout::tombstones_key(home)).unwrap()));
    damaged(&|db| drop(db.insert(layout::tombstones_key(home), &[0xFF; 8]).unwrap()));
    damaged(&|db| drop(db.insert(layout::tombstones_key(moved), &[0xFF; 3]).unwrap()));
    damaged(&|db| drop(db.insert(layout::piece_key(layout::block_key(home), 1), b"more").unwrap()));
    damaged(&|db| drop(db.insert(layout::block_key(home), &[2, 1, 9, 9, 9]).unwrap()));
    let twice = queue.store.db().get(layout::block_key(moved)).unwrap().unwrap();
    damaged(&|db| drop(db.insert(layout::block_key(blocks::BlockId::Moved(9)), &twice).unwrap()));
}
