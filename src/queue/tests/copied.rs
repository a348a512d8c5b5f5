//! The queue's files as they are copied while it works (I1).

use super::*;

/// What a kill leaves at any moment, and worse: one file is read before, another after what was written meanwhile. sled
/// may find what no kill would leave; then the seal says so, and no checkpoint is believed.
#[test]
fn i1_holds_for_files_that_are_copied_at_any_moment_beside_a_thread_that_commits_and_one_that_settles()
 {
    let (dir, queue) = fresh();
    let queue = std::sync::Arc::new(queue);
    let is_done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let order = std::sync::atomic::Ordering::SeqCst;
    // Document `n` has the value `n` from commit `n` on, and each commit changes what waits, too.
    let writes = std::thread::spawn({
        let (queue, is_done) = (queue.clone(), is_done.clone());
        move || {
            let mut n = 0;
            while !is_done.load(order) {
                n += 1;
                let some = (1..30).filter(|back| n > *back).map(|back| set(n - back, n));
                let ops = std::iter::once(insert(n, n)).chain(some).collect();
                queue.commit(ops, Some(&checkpoint(n as u64))).unwrap();
                if n % 50 == 0 {
                    queue.flush().unwrap();
                }
            }
            n
        }
    });
    // Those that are divisible by three, so that what is acked and what waits share blocks.
    let settles = std::thread::spawn({
        let (queue, is_done) = (queue.clone(), is_done.clone());
        move || {
            while !is_done.load(order) {
                let entries = lease(&queue);
                let applied = |entry: &Entry| ids(std::slice::from_ref(entry))[0] % 3 == 0;
                let (gone, back): (Vec<_>, Vec<_>) = entries.into_iter().partition(applied);
                ack(&queue, &gone, &Outcome::Applied);
                ack(&queue, &back, &Outcome::Unavailable { due_ms: 0 });
            }
        }
    });
    let (mut sound, mut most) = (0, 0);
    for moment in 0..40_u64 {
        std::thread::sleep(std::time::Duration::from_millis(moment * 7 % 31));
        let copy = TempDir::new().unwrap();
        copy_dir(&dir.path().join("queue"), &copy.path().join("queue"));
        let Ok(copied) = Queue::open(&QueueOptions::new(copy.path().join("queue"))) else {
            continue;
        };
        let Some(at) = copied.checkpoint().unwrap() else { continue };
        let waiting: std::collections::BTreeMap<i64, Entry> = copied
            .entries()
            .map(Result::unwrap)
            .map(|entry| (ids(std::slice::from_ref(&entry))[0], entry))
            .collect();
        let n = at.anchor.0 as i64;
        for id in (1..=n).filter(|id| id % 3 != 0) {
            let entry = waiting.get(&id).unwrap_or_else(|| panic!("{id} is gone, before {n}"));
            let WriteOp::Insert(document) = op(entry) else { panic!("{entry:?}") };
            let last = i64::from(document.get_i32("v").unwrap());
            assert!(last >= n.min(id + 29), "{id} is as of {last}, and the checkpoint of {n}");
        }
        (sound, most) = (sound + 1, most.max(n));
    }
    is_done.store(true, order);
    settles.join().unwrap();
    println!("{sound} of 40 copies were sound, up to {most} of {} commits", writes.join().unwrap());
    assert!(sound > 4 && most > 50, "{sound} copies were sound, up to {most}");
}
